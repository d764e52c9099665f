"""Curators by kind and name, as the configuration asks for them; a curator's libraries load when it is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kiwi.configuration import CurationSettings
from kiwi.curation.curators.protocols import Deduplicator, Grounder, Scorer, Segmenter, Synthesizer, Verifier
from kiwi.errors import UsageError

Kind = TypeVar("Kind")


def scorer(settings: CurationSettings, cache: str | None = None) -> Scorer:
    """`cache`: where replies of a server are kept; None keeps none."""

    def classical() -> Scorer:
        from kiwi.curation.curators.classical_score import ClassicalScorer

        return ClassicalScorer()

    def vlm() -> Scorer:
        from kiwi.curation.curators.vlm_score import VlmScorer

        return VlmScorer.from_settings(settings.vlm_score, settings.service, cache, sample_fps=settings.score_fps)

    return _named("scorer", settings.scorer, {"classical": classical, "vlm": vlm})


def grounder(settings: CurationSettings, cache: str | None = None) -> Grounder:
    def classical() -> Grounder:
        from kiwi.curation.curators.classical_ground import ClassicalGrounder

        return ClassicalGrounder(settings.min_region, settings.max_region)

    def vlm() -> Grounder:
        from kiwi.curation.curators.vlm_ground import VlmGrounder

        bounds = settings.min_region, settings.max_region
        return VlmGrounder.from_settings(settings.vlm_ground, settings.service, cache, *bounds)

    return _named("grounder", settings.grounder, {"classical": classical, "vlm": vlm})


def segmenter(settings: CurationSettings) -> Segmenter:
    def classical() -> Segmenter:
        from kiwi.curation.curators.classical_segment import ClassicalSegmenter

        return ClassicalSegmenter()

    def sam3() -> Segmenter:
        from kiwi.curation.curators.sam3_segment import Sam3Segmenter

        return Sam3Segmenter.from_settings(settings.sam3)

    return _named("segmenter", settings.segmenter, {"classical": classical, "sam3": sam3})


def synthesizer(settings: CurationSettings) -> Synthesizer:
    bounds = settings.max_aspect, settings.min_reference_side, settings.max_reference_side

    def classical() -> Synthesizer:
        from kiwi.curation.curators.classical_synthesize import ClassicalSynthesizer

        return ClassicalSynthesizer(*bounds)

    def qwen_image_edit() -> Synthesizer:
        from kiwi.curation.curators.qwen_image_edit_synthesize import QwenImageEditSynthesizer

        return QwenImageEditSynthesizer.from_settings(settings.qwen_image_edit, *bounds)

    makers = {"classical": classical, "qwen_image_edit": qwen_image_edit}
    return _named("synthesizer", settings.synthesizer, makers)


def verifier(settings: CurationSettings, cache: str | None = None) -> Verifier:
    def classical() -> Verifier:
        from kiwi.curation.curators.classical_verify import ClassicalVerifier

        return ClassicalVerifier(settings.min_verify)

    def vlm() -> Verifier:
        from kiwi.curation.curators.vlm_verify import VlmVerifier

        return VlmVerifier.from_settings(settings.vlm_verify, settings.service, cache, settings.min_verify)

    return _named("verifier", settings.verifier, {"classical": classical, "vlm": vlm})


def deduplicator(settings: CurationSettings) -> Deduplicator:
    def classical() -> Deduplicator:
        from kiwi.curation.curators.classical_deduplicate import ClassicalDeduplicator

        return ClassicalDeduplicator(settings.duplicate_distance)

    def clip() -> Deduplicator:
        from kiwi.curation.curators.clip_deduplicate import ClipDeduplicator

        bounds = settings.duplicate_similarity, settings.duplicate_memory
        return ClipDeduplicator.from_settings(settings.clip, *bounds)

    return _named("deduplicator", settings.deduplicator, {"classical": classical, "clip": clip})


def provenance(settings: CurationSettings) -> dict[str, str]:
    """`name-version` of each curator that these settings choose, by stage. Loads no weights and asks no server."""
    chosen = {
        "score": scorer(settings),
        "ground": grounder(settings),
        "segment": segmenter(settings),
        "synthesize": synthesizer(settings),
        "verify": verifier(settings),
        "deduplicate": deduplicator(settings),
    }
    return {stage: f"{curator.name}-{curator.version}" for stage, curator in chosen.items()}


def _named(kind: str, name: str, makers: dict[str, Callable[[], Kind]]) -> Kind:
    if name not in makers:
        raise UsageError(f"curation.{kind}: no curator named {name!r}", f"there is: {', '.join(sorted(makers))}")
    return makers[name]()
