"""On real edits the classical curators accept local and background changes, and refuse global styles."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiwi.configuration import CurationSettings, SourceSettings
from kiwi.curation.curators import registry
from kiwi.dataset.schema import REFERENCE_TASKS, Reason, Task
from kiwi.media import decode
from kiwi.sources.listing import list_pairs, open_pair

SETTINGS = CurationSettings()


@pytest.fixture(scope="module")
def curators() -> tuple:
    return registry.grounder(SETTINGS), registry.segmenter(SETTINGS), registry.synthesizer(SETTINGS)


def test_real_local_and_background_edits_get_references_and_styles_none(real_pairs: Path, curators: tuple) -> None:
    grounder, segmenter, synthesizer = curators
    verifier = registry.verifier(SETTINGS)
    source_settings = SourceSettings(kind="pairs", pairs=str(real_pairs))
    for pair in list_pairs(source_settings):
        media = open_pair(source_settings, pair)
        source, target = (
            decode(clip, pixel_budget=SETTINGS.pixel_budget, max_frames=1).frames[0]
            for clip in (media.source, media.target)
        )
        if pair.task is Task.GLOBAL_STYLE:
            for hidden in (Task.LOCAL_CHANGE, Task.BACKGROUND_CHANGE):
                assert grounder.ground(source, target, pair.prompt, hidden).reason is Reason.GLOBAL_CHANGE, pair.pair_id
        elif pair.task in REFERENCE_TASKS:
            grounding = grounder.ground(source, target, pair.prompt, pair.task)
            assert grounding.reason is None, pair.pair_id
            cut = segmenter.segment(source, target, grounding.box, grounding.kind)
            made = synthesizer.synthesize(target, cut.mask, grounding.kind)
            verdict = verifier.verify(made.image, source, target, cut.mask, grounding.kind)
            assert (verdict.reason, verdict.consistency > 0.7) == (None, True), pair.pair_id
