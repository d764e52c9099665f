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
    """An attention check if one stands at this place."""
    if not block(study) or not _is_check(study, signer, rater, len(asked)):
        return None
    number = len(asked) // block(study)
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
    study: Study,
    aim: Aim,
    signer: Signer,
    rater: str,
    mine: Sequence[str],
    voted: int,
    taken: Mapping[str, int],
    beyond: bool = False,
) -> Progress:
    """How far a rater is. `mine`: all items assigned so far; `voted`: how many of them have a vote.

    Attention checks count like everything else, and are counted before they come: a total that went up where one
    comes would give it away.
    """
    asked = [item for item in mine if item in study.items]
    pairs = sum(1 for item in asked if study.items[item].kind == "pair")
    free = len(lacking(study, aim, mine, taken))
    left = free if beyond else min(free, max(0, share(study, aim) - pairs))
    spare = len(study.checks) - (len(asked) - pairs)
    return Progress(
        voted, len(mine) + left + _checks(study, signer, rater, len(asked), left, spare), 0 if left else free
    )


def _checks(study: Study, signer: Signer, rater: str, place: int, left: int, spare: int) -> int:
    """How many attention checks a rater will be given who stands at `place` and has `left` comparisons before them."""
    length, found = block(study), 0
    while length and left:
        if found < spare and _is_check(study, signer, rater, place):
            found += 1
        else:
            left -= 1
        place += 1
    return found


def _is_check(study: Study, signer: Signer, rater: str, place: int) -> bool:
    """Whether an attention check stands at this place: one does in each block, where raters cannot foretell."""
    number, within = divmod(place, block(study))
    return within == signer.number("check", study.study_id, rater, str(number)) % block(study)
