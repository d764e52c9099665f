"""The typed configuration of a run: one object, one canonical JSON string, one hash.

KFP turns integers inside lists and dictionaries into floats, so a configuration crosses it as the string that
`RunConfiguration.canonical` returns. Presets (`kiwi/presets`) build these objects; nothing else holds defaults.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from kiwi.errors import UsageError

MediaKind = Literal["image", "video", "reference"]
TRAINABLE = ("all", "lora", "dit", "queries", "connectors", "source", "reference")  # parts of the editor


class Settings(BaseModel):
    """Frozen, and closed to unknown names: a misspelt setting is an error, never a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CollectionSettings(Settings):
    """One published collection of editing pairs, read in its own layout from a local folder or an s3:// address."""

    adapter: str = Field(description="name of an adapter of kiwi/sources (`kiwi data sources` lists them)")
    location: str
    limit: int | None = Field(None, ge=1, description="the first so many pairs of it; None: all")


class SourceSettings(Settings):
    """Where editing pairs come from: the procedural generator, the user's own pairs, or published collections."""

    kind: Literal["procedural", "pairs", "collections"] = "procedural"
    pairs: str | None = None
    collections: tuple[CollectionSettings, ...] = Field((), description="listed one after the other, in this order")
    listing_sha256: str | None = Field(None, description="of the pairs list: one that changed is curated anew")
    level: Literal["easy", "rich"] = "easy"
    clips: int = Field(3000, ge=0)
    images: int = Field(3000, ge=0)
    frames: int = Field(9, ge=1)
    size: int = Field(64, ge=32)
    fps: int = Field(8, ge=1)
    seed: int = 0


class VlmSettings(Settings):
    """How a vision-language model behind an OpenAI-compatible server is asked.

    The address and the key are no part of what is computed: KIWI_VLM_BASE_URL and KIWI_VLM_API_KEY, or for one stage
    KIWI_VLM_SCORE_BASE_URL, KIWI_VLM_GROUND_…, KIWI_VLM_VERIFY_….
    """

    model: str = Field(description="the name under which the server serves it")
    prompt: str | None = Field(None, description="a folder of one's own prompt files; None: those of the package")
    passes: int = Field(1, ge=1, description="answers asked of each question; their figures are averaged")
    temperature: float = Field(0.0, ge=0)
    seed: int = 0
    max_tokens: int = Field(1024, ge=16)
    max_frames: int = Field(16, ge=1, description="frames of a clip that are shown at most, evenly spread")
    image_pixels: int = Field(360_000, ge=1024, description="pixels of a picture that is sent")


class ServiceSettings(Settings):
    """How patiently services are asked; no part of what is computed."""

    concurrency: int = Field(64, ge=1, description="requests under way at once, of one task")
    timeout: float = Field(120.0, gt=0, description="seconds for one request")
    attempts: int = Field(6, ge=1, description="tries of one request, 429, 5xx and time-outs waited out")
    cache: bool = Field(True, description="keep replies by model, prompt, pictures and parameters")


class WeightsSettings(Settings):
    """Released weights and how they are loaded. `device` is "auto", "cpu", "cuda" or "cuda:N"."""

    model: str = Field(description="a repository on the Hugging Face hub, or a local folder")
    revision: str | None = None
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    batch: int = Field(8, ge=1)


class ImageEditorSettings(WeightsSettings):
    """An image editor that makes references."""

    steps: int = Field(40, ge=1)
    guidance: float = Field(4.0, ge=0, description="true classifier-free guidance; 1: none, half the time")
    lora: str | None = Field(None, description="a distilled LoRA: REPOSITORY, REPOSITORY::FILE.safetensors or a file")
    pixels: int = Field(1_048_576, ge=4096, description="pixels of the picture that is made")
    offload: bool = Field(False, description="keep parts that are not at work in main memory")


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
    vlm_score: VlmSettings = VlmSettings(model="EditScore-Qwen3-VL-8B-Instruct", temperature=0.7)
    vlm_ground: VlmSettings = VlmSettings(model="Qwen3-VL-32B-Instruct")
    vlm_verify: VlmSettings = VlmSettings(model="Qwen3-VL-32B-Instruct")
    sam3: WeightsSettings = WeightsSettings(model="facebook/sam3")
    qwen_image_edit: ImageEditorSettings = ImageEditorSettings(model="Qwen/Qwen-Image-Edit-2511", batch=1)
    clip: WeightsSettings = WeightsSettings(model="laion/CLIP-ViT-B-32-laion2B-s34B-b79K", dtype="float32", batch=64)
    service: ServiceSettings = ServiceSettings()
    score_fps: float = Field(2.0, gt=0, description="frames a second that a model scores (the paper's: 2)")
    pixel_budget: int = Field(360_000, ge=1024, description="pixels a frame that curators look at")
    max_frames: int = Field(240, ge=1, description="frames decoded of one clip")
    min_score: float = Field(6.0, ge=0, le=10)
    min_reference_score: float = Field(6.0, ge=0, le=10, description="for reference data, where it is stricter")
    only_reference_tasks: bool = Field(
        False, description="early exit: reject tasks that no reference is made for before they are scored"
    )
    min_first_frame_score: float = Field(
        0.0, ge=0, le=10, description="early exit: score the first frame alone first, and reject what is below; 0: off"
    )
    unique_crops: bool = Field(
        False, description="early exit: drop near-duplicate target crops before references are made of them"
    )
    min_region: float = Field(0.002, ge=0, le=1, description="smallest edited share of the frame")
    max_region: float = Field(0.85, ge=0, le=1, description="largest edited share of the frame for a local edit")
    max_aspect: float = Field(4.0, ge=1)
    min_reference_side: int = Field(8, ge=1)
    max_reference_side: int = Field(2048, ge=16)
    min_verify: float = Field(0.5, ge=0, le=1)
    duplicate_distance: float = Field(4.0, ge=0, description="classical: bits of 64 in which two hashes may differ")
    duplicate_similarity: float = Field(0.95, ge=0, le=1, description="clip: cosine from which two are the same")
    duplicate_memory: float = Field(2.0, gt=0, description="clip: GB that the comparison of all with all may take")
    duplicate_scope: Literal["reference", "quadruplet"] = Field(
        "quadruplet", description="what must repeat: the reference alone (the paper's), or reference and target both"
    )
    min_quadruplets: int = Field(1, ge=0)
    min_training_pairs: int = Field(4, ge=1)


def causal(frames: int) -> int:
    """The same number of frames, if it is 4k + 1, as Wan's autoencoder takes them. Raises ValueError otherwise."""
    if (frames - 1) % 4:
        raise ValueError(f"{frames} frames are not 4k + 1")
    return frames


class ModelSettings(Settings):
    """The editor's architecture. `preset` names the builder in kiwi/presets; sizes are in pixels and frames."""

    preset: str = "tiny"
    size: int = Field(64, ge=8, description="the square root of a frame's pixels")
    frames: int = Field(9, ge=1, description="of a clip, 4k + 1")
    seed: int = 0
    reference_rows: Literal["all", "needed"] = Field(
        "all",
        description="quadruplets that train with their reference: all of them, or those whose instruction alone does "
        "not say what to make; every quadruplet whose instruction does say it also trains without its reference",
    )
    source_embedding: Literal["separate", "shared", "channels"] = Field(
        "separate", description="how source latents enter: added by a convolution of their own (the paper's), by the "
        "backbone's own, or as further channels beside the noisy ones",
    )  # fmt: skip
    source_scaling: Literal["sigma", "learned", "none"] = Field(
        "sigma", description="what the added source is multiplied with: the noise level, a curve over it, nothing"
    )
    reference_position: Literal["last", "first"] = Field("last", description="of reference frames, in time")
    reference_features: bool = Field(True, description="off: learnable queries alone speak of the reference")
    backbone: str | None = Field(
        None, description="a local folder with transformer/ and vae/ of Wan, which the sizes wan2.… start from"
    )
    language_model: str | None = Field(None, description="a local folder of Qwen2.5-VL, which they start from")

    @field_validator("frames")
    @classmethod
    def _causal(cls, frames: int) -> int:
        return causal(frames)


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
    size: int | None = Field(
        None, ge=8, description="the square root of a frame's pixels in this stage; None: the model's"
    )
    frames: int | None = Field(None, ge=1, description="frames of a clip in this stage, 4k + 1; None: the model's")
    batch_tokens: int | None = Field(
        None, ge=1, description="fill batches to so many transformer tokens in all, instead of batch_size samples"
    )
    accumulate: int = Field(1, ge=1, description="parts in which a rank works through its share of a batch")
    gradient_clip: float = Field(1.0, gt=0)
    moments: Literal["float32", "bfloat16"] = Field("float32", description="how AdamW keeps its two moments")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights, which the stage then leaves; 0: none")
    weighting: Literal["uniform", "bell"] = Field("uniform", description="of the loss over the noise level")
    reference_scale: tuple[float, float] | None = Field(
        None, description="references are shown at a random scale in these bounds, on white; the paper's (0.7, 1.0)"
    )
    reference_similarity: float = Field(
        0.0, ge=0, description="weight of the likeness between the predicted clean latents and the reference's"
    )
    temporal_consistency: float = Field(
        0.0, ge=0, description="weight of the error of the predicted clean latents' changes over time"
    )

    @field_validator("frames")
    @classmethod
    def _causal(cls, frames: int | None) -> int | None:
        return frames if frames is None else causal(frames)

    @field_validator("trainable")
    @classmethod
    def _parts(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [part for part in parts if part not in TRAINABLE]
        if unknown or not parts:
            said = f"no trainable part {unknown[0]!r}" if unknown else "nothing to train"
            raise ValueError(f"{said}; parts: {', '.join(TRAINABLE)}")
        return parts

    @field_validator("reference_scale")
    @classmethod
    def _bounds(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds is not None and not 0 < bounds[0] <= bounds[1] <= 1:
            raise ValueError(f"{bounds} are no scales: 0 < least <= most <= 1")
        return bounds


class TrainerSettings(Settings):
    """How stages are trained: what changes speed and memory, and but for `precision` nothing of what is learned."""

    device: str = Field("auto", description='"auto", "cpu", "cuda" or "cuda:N"')
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the arithmetic; the weights that are trained are kept to float32 either way"
    )
    attention: str = Field("native", description="one of diffusers' attention backends: native, _native_cudnn, flash…")
    shard_ranks: int | None = Field(
        None, ge=1, description="ranks that one copy of the weights is spread over (FSDP); fewer than all: HSDP"
    )
    recompute: Literal["none", "selective", "attention", "full"] = Field(
        "none",
        description="what the backward pass computes again: nothing; all but products and attention; all but "
        "attention; whole blocks",
    )
    compile: bool = Field(False, description="compile the transformer's blocks")
    prefetch: int = Field(2, ge=1, description="batches made ready ahead of their step")
    log_every: int = Field(10, ge=1)
    asynchronous: bool = Field(True, description="write checkpoints while training goes on")
    keep: int = Field(2, ge=1, description="newest checkpoints of a stage that are kept")
    samples_every: int = Field(0, ge=0, description="edit a few held-out clips every so many steps; 0: never")
    samples: int = Field(4, ge=1, description="how many clips these are")
    profile: bool = Field(False, description="write a trace of a few steps")
    peak_tflops: float | None = Field(
        None, gt=0, description="of one device, for the utilisation; None: known for A100, H100 and H200 alone"
    )


class BenchmarkSettings(Settings):
    """A held-out benchmark. `share` is the part of the user's own pairs that is held out of training."""

    listed: str | None = Field(
        None, description="NAME=LOCATION of a list without ground truth, which the gate is to decide on; None: held out"
    )
    samples_per_kind: int = Field(40, ge=1)
    stage_samples_per_kind: int = Field(16, ge=1, description="samples for the figures that show what a stage added")
    sampling_steps: int = Field(5, ge=1)
    seed: int = 1_000_003
    share: float = Field(0.2, gt=0, lt=1)
    judge: str = Field("measured", description="measured, or mllm: a multimodal model behind KIWI_VLM_JUDGE_BASE_URL")
    mllm: VlmSettings = Field(
        VlmSettings(model="Qwen3-VL-32B-Instruct", passes=3, temperature=0.7, max_frames=8),
        description="the judge mllm; `prompt`: a folder of one's own rubrics",
    )
    service: ServiceSettings = ServiceSettings(concurrency=32)
    prices: tuple[float, float] | None = Field(
        None, description="of the judge mllm, for a million tokens read and a million written, in any currency"
    )

    @model_validator(mode="after")
    def _judge_needs_no_truth(self) -> BenchmarkSettings:
        if self.listed is not None and self.judge == "measured":
            raise ValueError("a list has no ground truth, which the judge measured needs: set benchmark.judge=mllm")
        return self


class GateSettings(Settings):
    """What a candidate must show before it is promoted. Empty floors: only the comparison counts."""

    margin: float = Field(0.02, ge=0, description="overall score by which the candidate must lead")
    criterion_tolerance: float = Field(0.25, ge=0, description="how far one criterion may fall behind the champion's")
    min_coverage: float = Field(0.95, ge=0, le=1)
    min_samples: int = Field(1, ge=1, description="judged samples below which nothing is decided")
    confidence: float = Field(
        0.95, ge=0, lt=1, description="least chance that the candidate is the better one, from the paired bootstrap"
    )
    spreads: float = Field(2.0, ge=0, description="the lead must also exceed so many standard errors of the judge")
    require_comparison: bool = Field(
        False, description="hold where the champion's scores are not known sample by sample; else overalls decide then"
    )
    floors: dict[str, float] = {}
    ceilings: dict[str, float] = {}
    approvals: int = Field(0, ge=0, description="how many people must approve a version before it is promoted")
    approvers: tuple[str, ...] = Field((), description="who may approve; empty: anyone but who trained it")

    @field_validator("approvers")
    @classmethod
    def _enough_approvers(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        people, needed = {name.strip().casefold() for name in value} - {""}, info.data.get("approvals", 0)
        if value and len(people) < needed:
            raise ValueError(f"{needed} people must approve, and {len(people)} may: name more")
        return value


class RunConfiguration(Settings):
    """Everything a run is made of. `workspace`, `store` and `tracking_uri` say where, the rest says what."""

    preset: str
    seed: int = 0
    workspace: str
    store: str | None = Field(
        None, description="where curation keeps its parts, a folder or s3://…; None: the workspace"
    )
    tracking_uri: str
    experiment: str = "kiwi"
    model_name: str = "kiwi-edit-tiny"
    threads: int = Field(2, ge=1)
    source: SourceSettings = SourceSettings()
    curation: CurationSettings = CurationSettings()
    model: ModelSettings = ModelSettings()
    stages: tuple[StageSettings, ...]
    trainer: TrainerSettings = TrainerSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
    gate: GateSettings = GateSettings()

    @field_validator("store")
    @classmethod
    def _place(cls, store: str | None) -> str | None:
        scheme, separator, rest = (store or "").partition("://")
        if separator and (scheme not in ("s3", "file", "memory") or not rest.strip("/")):
            raise ValueError(f"{store!r} is neither a folder nor s3://BUCKET[/PREFIX]")
        return store

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
            said = f"configuration: {where}: {first['msg'].removeprefix('Value error, ')}"
            raise UsageError(said, "see kiwi/configuration.py for the fields") from error

    @property
    def workdir(self) -> Path:
        return Path(self.workspace)

    def identity(self) -> str:
        """Hash of what the run computes, leaving out where it runs and what it is called."""
        said = self.model_dump(mode="json")
        for place in ("workspace", "store", "tracking_uri", "experiment", "model_name", "threads"):
            said.pop(place)
        said["trainer"] = self.trainer.precision  # the rest of it is how one trains, not what
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
