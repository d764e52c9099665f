"""The typed configuration of a run: one object, one canonical JSON string, one hash.

KFP turns integers inside lists and dictionaries into floats, so a configuration crosses it as the string that
`RunConfiguration.canonical` returns. Presets (`kiwi/presets`) build these objects; nothing else holds defaults.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kiwi.errors import UsageError

MediaKind = Literal["image", "video", "reference"]


class Settings(BaseModel):
    """Frozen, and closed to unknown names: a misspelt setting is an error, never a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSettings(Settings):
    """Where editing pairs come from: the procedural generator, or the user's own pairs."""

    kind: Literal["procedural", "pairs"] = "procedural"
    pairs: str | None = None
    listing_sha256: str | None = Field(None, description="of the pairs list: one that changed is curated anew")
    level: Literal["easy", "rich"] = "easy"
    clips: int = Field(3000, ge=0)
    images: int = Field(3000, ge=0)
    frames: int = Field(9, ge=1)
    size: int = Field(64, ge=32)
    fps: int = Field(8, ge=1)
    seed: int = 0


class CurationSettings(Settings):
    """Who curates, in what portions, and where the thresholds lie. Scores are 0-10."""

    shards: int = Field(2, ge=1, le=50)
    chunk_rows: int = Field(256, ge=1)
    scorer: str = "classical"
    grounder: str = "classical"
    segmenter: str = "classical"
    synthesizer: str = "classical"
    verifier: str = "classical"
    deduplicator: str = "classical"
    pixel_budget: int = Field(360_000, ge=1024, description="pixels a frame that curators look at")
    max_frames: int = Field(240, ge=1, description="frames decoded of one clip")
    min_score: float = Field(6.0, ge=0, le=10)
    min_reference_score: float = Field(6.0, ge=0, le=10)
    min_region: float = Field(0.002, ge=0, le=1, description="smallest edited share of the frame")
    max_region: float = Field(0.85, ge=0, le=1, description="largest edited share of the frame for a local edit")
    max_aspect: float = Field(4.0, ge=1)
    min_reference_side: int = Field(8, ge=1)
    max_reference_side: int = Field(2048, ge=16)
    min_verify: float = Field(0.5, ge=0, le=1)
    duplicate_distance: float = Field(4.0, ge=0)
    duplicate_scope: Literal["reference", "quadruplet"] = Field(
        "quadruplet", description="what must repeat: the reference alone (the paper's), or reference and target both"
    )
    min_quadruplets: int = Field(1, ge=0)
    min_training_pairs: int = Field(4, ge=1)


class ModelSettings(Settings):
    """The editor's architecture. `preset` names the builder in kiwi/presets; sizes are in pixels and frames."""

    preset: str = "tiny"
    size: int = 64
    frames: int = 9
    seed: int = 0
    reference_rows: Literal["all", "needed"] = Field(
        "all",
        description="quadruplets that train with their reference: all of them, or those whose instruction alone does "
        "not say what to make; every quadruplet whose instruction does say it also trains without its reference",
    )


class StageSettings(Settings):
    """One stage of the curriculum (paper, section 4.2), as data."""

    name: str
    steps: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    mix: dict[MediaKind, float]
    learning_rate: float
    mllm_learning_rate: float
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_learning_rate: float = 0.02
    trainable: tuple[str, ...] = ("all",)
    start_queries: tuple[tuple[str, str], ...] = Field(
        (), description="(from, to): query banks copied when the stage starts from a previous one"
    )
    edit_weight: float = Field(
        0.0, ge=0, description="how much more the loss counts where source and target latents differ; 0: the paper's"
    )
    warmup_share: float = 0.03
    decay_to: float = Field(0.0, ge=0, le=1, description="the learning rate at the end, as a share of its peak")
    max_epochs: float = Field(1000.0, gt=0, description="an upper bound on passes over the data: steps shrink to it")
    checkpoint_every: int = Field(200, ge=1)


class BenchmarkSettings(Settings):
    """A held-out benchmark. `share` is the part of the user's own pairs that is held out of training."""

    samples_per_kind: int = Field(40, ge=1)
    stage_samples_per_kind: int = Field(16, ge=1, description="samples for the figures that show what a stage added")
    sampling_steps: int = Field(5, ge=1)
    seed: int = 1_000_003
    share: float = Field(0.2, gt=0, lt=1)
    judge: str = "measured"


class GateSettings(Settings):
    """What a candidate must show before it is promoted. Empty floors: only the comparison counts."""

    margin: float = Field(0.02, ge=0, description="overall score by which the candidate must lead")
    criterion_tolerance: float = Field(0.25, ge=0, description="how far one criterion may fall behind the champion's")
    min_coverage: float = Field(0.95, ge=0, le=1)
    floors: dict[str, float] = {}
    ceilings: dict[str, float] = {}


class RunConfiguration(Settings):
    """Everything a run is made of. `workspace` and `tracking_uri` say where, the rest says what."""

    preset: str
    seed: int = 0
    workspace: str
    tracking_uri: str
    experiment: str = "kiwi"
    model_name: str = "kiwi-edit-tiny"
    threads: int = Field(2, ge=1)
    source: SourceSettings = SourceSettings()
    curation: CurationSettings = CurationSettings()
    model: ModelSettings = ModelSettings()
    stages: tuple[StageSettings, ...]
    benchmark: BenchmarkSettings = BenchmarkSettings()
    gate: GateSettings = GateSettings()

    def canonical(self) -> str:
        """The one JSON string of this configuration: sorted keys, no blanks."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def parse(cls, text: str) -> RunConfiguration:
        """Reads what `canonical` wrote. Raises UsageError naming the field that does not fit."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            said = f"configuration: {where}: {first['msg']}"
            raise UsageError(said, "see kiwi/configuration.py for the fields") from error

    @property
    def workdir(self) -> Path:
        return Path(self.workspace)

    def identity(self) -> str:
        """Hash of what the run computes, leaving out where it runs and what it is called."""
        said = self.model_dump(mode="json")
        for place in ("workspace", "tracking_uri", "experiment", "model_name", "threads"):
            said.pop(place)
        return digest(said)

    def stage(self, name: str) -> StageSettings:
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise UsageError(f"no training stage {name!r} in preset {self.preset}", f"stages: {names}")


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(*parts: Any) -> str:
    """Sixteen hexadecimal digits of a SHA-256 over the canonical JSON of `parts`."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]
