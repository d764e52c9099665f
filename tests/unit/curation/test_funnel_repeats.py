"""A finished dataset is searched for repetitions by the deduplicator that made it, or it is said why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kiwi.configuration import CurationSettings
from kiwi.curation.curators import registry
from kiwi.curation.repeats import RepeatedReferences, repeats_of
from kiwi.media import encode_video


def manifest(scope: str = "reference", **changes: Any) -> dict[str, Any]:
    deduplicator = registry.deduplicator(CurationSettings())
    said = {"deduplicator": "classical", "duplicate_distance": 4.0, "duplicate_scope": scope, "from_the_future": 1}
    curators = {"deduplicate": f"{deduplicator.name}-{deduplicator.version}"}
    return {"curators": curators, "parameters": {"curation": said}} | changes


def picture(seed: int) -> Any:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return coarse.repeat(16, 0).repeat(16, 1)


def clip(seed: int) -> bytes:
    return encode_video(None, np.stack([picture(seed)] * 2), 8)


def looking(scope: str) -> RepeatedReferences:
    found = repeats_of(manifest(scope))
    assert isinstance(found, RepeatedReferences)
    return found


def test_a_repeated_reference_is_found_by_position() -> None:
    repeats = looking("reference")
    for position, seed in ((3, 1), (5, 2), (9, 1)):
        repeats.see(position, picture(seed), b"never decoded")
    assert repeats.found() == [(9, 3)]


def test_where_the_quadruplet_must_repeat_another_target_makes_another_sample() -> None:
    repeats = looking("quadruplet")
    for position, seed, target in ((0, 1, 7), (1, 1, 8), (2, 1, 7)):
        repeats.see(position, picture(seed), clip(target))
    assert repeats.found() == [(2, 0)]


def test_nothing_seen_is_nothing_found() -> None:
    assert looking("reference").found() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"curators": {}}, "does not say"),
        ({"curators": {"deduplicate": "classical-0"}}, "made by classical-0, and this is"),
        ({"parameters": {"curation": {"deduplicator": "clip"}}}, "needs weights"),
        ({"parameters": {}}, "does not say"),
    ],
)
def test_what_cannot_be_compared_says_why(changes: dict[str, Any], said: str) -> None:
    found = repeats_of(manifest(**changes))
    assert isinstance(found, str)
    assert said in found
