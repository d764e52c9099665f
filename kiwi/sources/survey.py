"""What a collection holds, counted from its listing, and whether the media that it names are there."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable
from typing import Any

from kiwi.dataset.schema import REFERENCE_TASKS, EditPair
from kiwi.sources.adapter import Adapter, SourceFailure
from kiwi.sources.registry import adapter_named, adapter_names

PROBLEMS_SHOWN = 5
_PROGRESS_EVERY = 50_000  # rows

PROCEDURAL = {
    "name": "procedural",
    "title": "rendered clips with exact edits (the default; needs no location)",
    "license": "CC0-1.0",
    "layout": "none: drawn from a seed",
}


def adapter_table() -> list[dict[str, str]]:
    """Every source, a row each: name, title, license, layout."""
    adapters = (adapter_named(name) for name in adapter_names())
    rows = [
        {"name": found.name, "title": found.title, "license": found.license, "layout": found.layout}
        for found in adapters
    ]
    return [PROCEDURAL, *rows]


def survey(
    name: str, location: str, checked: int = 20, progress: Callable[[int], None] = lambda rows: None
) -> dict[str, Any]:
    """Counts a whole listing in one pass, and opens the media of `checked` pairs of it.

    The sample depends on the pairs' ids alone, so that the same listing is checked in the same places.

    Returns:
        {adapter, location, license {name: pairs}, pairs, tasks, edit_types, media, given_references,
        eligible_for_references, problems {reason: pairs}, checked {pairs, missing {reason: pairs}}, first_problems}.

    Raises:
        SourceError: the collection cannot be listed.
    """
    adapter = adapter_named(name)
    adapter.check(location)
    counts: dict[str, Counter[str]] = {
        key: Counter() for key in ("license", "tasks", "edit_types", "media", "problems")
    }
    sample: list[tuple[int, int, EditPair]] = []
    first_problems: list[dict[str, str]] = []
    pairs = given = eligible = 0
    for pair in adapter.entries(location):
        pairs += 1
        if pairs % _PROGRESS_EVERY == 0:
            progress(pairs)
        counts["license"][pair.license] += 1
        if pair.problem is not None:
            counts["problems"][pair.problem.value] += 1
            if len(first_problems) < PROBLEMS_SHOWN:
                first_problems.append(_told(pair, pair.problem.value, pair.problem_detail))
            continue
        counts["tasks"][pair.task.value] += 1
        counts["edit_types"][pair.edit_type] += 1
        counts["media"][pair.media] += 1
        given += bool(pair.ref_image)
        eligible += pair.task in REFERENCE_TASKS and pair.media == "video"
        _sampled(sample, pair, checked)
    missing, failures = _opened(adapter, location, [pair for _, _, pair in sorted(sample, key=lambda one: one[1])])
    return {
        "adapter": name,
        "location": location,
        "pairs": pairs,
        **{key: dict(counts[key].most_common()) for key in ("license", "tasks", "edit_types", "media")},
        "given_references": given,
        "eligible_for_references": eligible,
        "problems": dict(counts["problems"].most_common()),
        "checked": {"pairs": len(sample), "missing": missing},
        "first_problems": [*first_problems, *failures][: 2 * PROBLEMS_SHOWN],
    }


def _sampled(sample: list[tuple[int, int, EditPair]], pair: EditPair, size: int) -> None:
    """Keeps the `size` pairs whose ids have the smallest hashes (as a heap of the largest of them)."""
    if size <= 0:
        return
    drawn = int.from_bytes(hashlib.blake2b(f"{pair.position}:{pair.pair_id}".encode(), digest_size=8).digest(), "big")
    if len(sample) < size:
        heapq.heappush(sample, (-drawn, pair.position, pair))
    elif -drawn > sample[0][0]:
        heapq.heapreplace(sample, (-drawn, pair.position, pair))


def _opened(adapter: Adapter, location: str, pairs: list[EditPair]) -> tuple[dict[str, int], list[dict[str, str]]]:
    missing: Counter[str] = Counter()
    told = []
    for pair in pairs:
        try:
            adapter.open(location, pair)
        except SourceFailure as failure:
            missing[failure.reason.value] += 1
            told.append(_told(pair, failure.reason.value, failure.detail))
    return dict(missing.most_common()), told[:PROBLEMS_SHOWN]


def _told(pair: EditPair, reason: str, detail: str) -> dict[str, str]:
    return {"position": str(pair.position), "id": pair.pair_id, "reason": reason, "detail": detail[:300]}
