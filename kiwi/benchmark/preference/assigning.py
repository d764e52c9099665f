"""Which item a rater is shown next, and on which sides: even over comparisons, pairs of sets and raters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kiwi.benchmark.preference.signing import Signer
from kiwi.benchmark.preference.study import Item, Study


@dataclass(frozen=True)
class Aim:
    """How many raters take part (no more are let in), and how many of them see each comparison."""

    raters: int = 2
    overlap: int = 2


@dataclass(frozen=True)
class Progress:
    """`done` of `total` items that are this rater's share; `open_for_more`: comparisons that lack votes beyond it."""

    done: int
    total: int
    open_for_more: int


def share(study: Study, aim: Aim) -> int:
    """How many comparisons each rater is asked."""
    return math.ceil(len(study.comparisons) * aim.overlap / aim.raters)


def block(study: Study) -> int:
    """In every so many items stands one attention check; 0 where there are none."""
    return max(2, round(1 / study.attention_share)) if study.checks and study.attention_share > 0 else 0


def next_item(
    study: Study,
    aim: Aim,
    signer: Signer,
    rater: str,
    mine: Sequence[str],
    taken: Mapping[str, int],
    beyond: bool = False,
) -> Item | None:
    """The next item for `rater`, or None where the share is done (with `beyond`: where nothing lacks votes).

    Args:
        mine: the items already assigned to this rater, in order.
        taken: how often each comparison was assigned, to anyone.
    """
    asked = [study.items[item] for item in mine if item in study.items]
    comparisons = [item for item in asked if item.kind == "pair"]
    if not beyond and len(comparisons) >= share(study, aim):
        return None
    candidates = lacking(study, aim, mine, taken)
    if not candidates:
        return None
    check = _due_check(study, signer, rater, asked)
    if check is not None:
        return check
    seen: dict[tuple[str, str], int] = {}
    samples: dict[str, int] = {}
    for place, item in enumerate(comparisons):
        seen[item.sets] = seen.get(item.sets, 0) + 1
        samples[item.sample.sample_id] = place + 1
    return min(
        candidates,
        key=lambda item: (
            taken.get(item.item_id, 0),
            seen.get(item.sets, 0),
            samples.get(item.sample.sample_id, 0),  # a sample seen lately comes late
            signer.number("order", study.study_id, rater, item.item_id),
        ),
    )


def lacking(study: Study, aim: Aim, mine: Sequence[str], taken: Mapping[str, int]) -> list[Item]:
    """Comparisons that this rater has not seen and that too few were assigned."""
    known = set(mine)
    return [
        item for item in study.comparisons if item.item_id not in known and taken.get(item.item_id, 0) < aim.overlap
    ]


def _due_check(study: Study, signer: Signer, rater: str, asked: Sequence[Item]) -> Item | None:
    """An attention check if one stands at this place: one in each block, at a place that raters cannot foretell."""
    length = block(study)
    if not length:
        return None
    number, place = divmod(len(asked), length)
    if place != signer.number("check", study.study_id, rater, str(number)) % length:
        return None
    kinds = ("damaged", "same") if signer.number("kind", study.study_id, rater) % 2 else ("same", "damaged")
    known = {item.item_id for item in asked}
    last = asked[-1].sample.sample_id if asked else ""
    unused = [study.items[check.check_id] for check in study.checks if check.check_id not in known]
    return min(
        (item for item in unused if item.sample.sample_id != last),
        key=lambda item: (
            item.kind != kinds[number % 2],
            signer.number("order", study.study_id, rater, item.item_id),
        ),
        default=None,
    )


def flipped(study: Study, signer: Signer, item: Item, earlier: int) -> bool:
    """Whether `first` goes to the right: by chance at first, then the other way each time the item is assigned."""
    return bool((signer.number("side", study.study_id, item.item_id) + earlier) % 2)


def progress(
    study: Study, aim: Aim, mine: Sequence[str], voted: int, taken: Mapping[str, int], beyond: bool = False
) -> Progress:
    """How far a rater is. `mine`: all items assigned so far; `voted`: how many of them have a vote.

    Attention checks count like everything else, so that the figures do not give them away.
    """
    asked = sum(1 for item in mine if item in study.items and study.items[item].kind == "pair")
    free = len(lacking(study, aim, mine, taken))
    left = free if beyond else min(free, max(0, share(study, aim) - asked))
    length = block(study)
    checks = round(left / (length - 1)) if length else 0
    checks = min(checks, len(study.checks) - (len(mine) - asked))
    return Progress(voted, len(mine) + left + max(0, checks), 0 if left else free)
