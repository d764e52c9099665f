"""What each stage's results depend on, as a key: a result is found again exactly where everything it hangs on agrees.

A stage's key covers its own settings, the versions of its curators, and the key of the stage before. So a changed
setting, or a curator that judges otherwise than it did, makes anew what follows from it and nothing else. The score
thresholds belong to the stage after: scores are measured once, and a threshold is applied to what was measured.
"""

from __future__ import annotations

from kiwi.configuration import CurationSettings, RunConfiguration, digest
from kiwi.curation.curators import registry
from kiwi.dataset.schema import CURATION_STAGES

READS: dict[str, tuple[str, ...]] = {
    "ingest": (),
    "score": ("scorer", "pixel_budget", "max_frames", "only_reference_tasks", "min_first_frame_score"),
    "ground": ("grounder", "min_score", "min_reference_score", "min_region", "max_region"),
    "segment": ("segmenter", "unique_crops"),
    "unique_crops": (),
    "synthesize": ("synthesizer", "max_aspect", "min_reference_side", "max_reference_side"),
    "verify": ("verifier", "min_verify", "deduplicator"),
    "deduplicate": ("deduplicator", "duplicate_distance", "duplicate_similarity", "duplicate_scope"),
}
CURATOR_SETTINGS = {
    ("scorer", "vlm"): ("vlm_score", "score_fps"),
    ("grounder", "vlm"): ("vlm_ground",),
    ("verifier", "vlm"): ("vlm_verify",),
    ("segmenter", "sam3"): ("sam3",),
    ("synthesizer", "qwen_image_edit"): ("qwen_image_edit",),
    ("deduplicator", "clip"): ("clip",),
}
# How the work is divided, done and judged enough; a test holds that every setting is in one of these places.
WITHOUT_EFFECT = ("shards", "chunk_rows", "service", "duplicate_memory", "min_quadruplets", "min_training_pairs")
_CROPS = ("deduplicator", "duplicate_distance", "duplicate_similarity")
_PORTION = ("device", "batch", "offload")


def stage_keys(configuration: RunConfiguration) -> dict[str, str]:
    """A key for each curation stage, in their order."""
    settings = configuration.curation
    curators = registry.provenance(settings)
    keys: dict[str, str] = {}
    before = digest(configuration.source.model_dump(mode="json"), configuration.seed)
    for stage in CURATION_STAGES:
        names = READS[stage]
        if settings.unique_crops and stage in ("segment", "unique_crops"):
            names = (*names, *_CROPS)
        before = digest(before, stage, _values(settings, names), _versions(curators, names))
        keys[stage] = before
    return keys


def curation_key(configuration: RunConfiguration) -> str:
    """Names the dataset of a run: its source, its curators, its thresholds, its split; never the number of shards."""
    share = configuration.benchmark.share if configuration.source.kind != "procedural" else 0.0
    return digest(stage_keys(configuration)["deduplicate"], share)


def score_decision_key(configuration: RunConfiguration) -> str:
    """Names the decisions on the measured scores: the thresholds that are applied to them."""
    settings = configuration.curation
    return digest(settings.min_score, settings.min_reference_score)


def effective_settings(configuration: RunConfiguration) -> dict[str, object]:
    """The settings of curation that have a say in what becomes of a row, as the keys count them."""
    settings, values = configuration.curation, dict[str, object]()
    for names in READS.values():
        values |= _values(settings, names)
    return values


def _values(settings: CurationSettings, names: tuple[str, ...]) -> dict[str, object]:
    said = settings.model_dump(mode="json")
    values = {name: said[name] for name in names}
    for name in names:
        for option in CURATOR_SETTINGS.get((name, str(said[name])), ()):
            value = said[option]
            if isinstance(value, dict):
                value = {key: held for key, held in value.items() if key not in _PORTION}
            values[option] = value
    return values


def _versions(curators: dict[str, str], names: tuple[str, ...]) -> list[str]:
    kinds = {
        "scorer": "score",
        "grounder": "ground",
        "segmenter": "segment",
        "synthesizer": "synthesize",
        "verifier": "verify",
        "deduplicator": "deduplicate",
    }
    return [curators[kinds[name]] for name in names if name in kinds]
