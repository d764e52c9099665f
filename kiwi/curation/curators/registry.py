"""Curators by kind and name, as the configuration asks for them; a curator's libraries load when it is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kiwi.configuration import CurationSettings
from kiwi.curation.curators.protocols import Deduplicator, Grounder, Scorer, Segmenter, Synthesizer, Verifier
from kiwi.errors import UsageError

Kind = TypeVar("Kind")


def scorer(settings: CurationSettings) -> Scorer:
    def classical() -> Scorer:
        from kiwi.curation.curators.classical_score import ClassicalScorer

        return ClassicalScorer()

    return _named("scorer", settings.scorer, {"classical": classical})


def grounder(settings: CurationSettings) -> Grounder:
    def classical() -> Grounder:
        from kiwi.curation.curators.classical_ground import ClassicalGrounder

        return ClassicalGrounder(settings.min_region, settings.max_region)

    return _named("grounder", settings.grounder, {"classical": classical})


def segmenter(settings: CurationSettings) -> Segmenter:
    def classical() -> Segmenter:
        from kiwi.curation.curators.classical_segment import ClassicalSegmenter

        return ClassicalSegmenter()

    return _named("segmenter", settings.segmenter, {"classical": classical})


def synthesizer(settings: CurationSettings) -> Synthesizer:
    def classical() -> Synthesizer:
        from kiwi.curation.curators.classical_synthesize import ClassicalSynthesizer

        return ClassicalSynthesizer(settings.max_aspect, settings.min_reference_side, settings.max_reference_side)

    return _named("synthesizer", settings.synthesizer, {"classical": classical})


def verifier(settings: CurationSettings) -> Verifier:
    def classical() -> Verifier:
        from kiwi.curation.curators.classical_verify import ClassicalVerifier

        return ClassicalVerifier(settings.min_verify)

    return _named("verifier", settings.verifier, {"classical": classical})


def deduplicator(settings: CurationSettings) -> Deduplicator:
    def classical() -> Deduplicator:
        from kiwi.curation.curators.classical_deduplicate import ClassicalDeduplicator

        return ClassicalDeduplicator()

    return _named("deduplicator", settings.deduplicator, {"classical": classical})


def provenance(settings: CurationSettings) -> dict[str, str]:
    """`name-version` of each curator that these settings choose, by stage."""
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
