"""What a sample is: an editing pair on its way to a quadruplet, its status, and the typed reasons.

`iid, prompt, src_video, tgt_video, ref_image_bytes` are the columns of the released RefVIE dataset
(docs/data.md); ours are a superset.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

CURATION_STAGES = ("ingest", "score", "ground", "segment", "unique_crops", "synthesize", "verify", "deduplicate")


class Status(StrEnum):
    """Where a row stands on its way to a quadruplet. Nothing vanishes: rows in = kept + rejected + failed."""

    KEPT = "kept"
    REJECTED = "rejected"
    FAILED = "failed"


class TrainsAs(StrEnum):
    """What a row is good for in training, whatever became of its reference."""

    QUADRUPLET = "quadruplet"
    INSTRUCTION = "instruction"
    NOTHING = "nothing"


class Task(StrEnum):
    """The one taxonomy that every source maps its own edit types to; others are kept as they are."""

    GLOBAL_STYLE = "global_style"
    BACKGROUND_CHANGE = "background_change"
    LOCAL_CHANGE = "local_change"
    LOCAL_REMOVE = "local_remove"
    LOCAL_ADD = "local_add"
    OTHER = "other"


REFERENCE_TASKS = frozenset({Task.BACKGROUND_CHANGE, Task.LOCAL_CHANGE, Task.LOCAL_ADD})


class Reason(StrEnum):
    """Why a row left the way to a quadruplet. `FAILURES` are those that could not be measured at all."""

    # failed
    SOURCE_MISSING = "source_missing"
    TARGET_MISSING = "target_missing"
    REFERENCE_MISSING = "reference_missing"
    SOURCE_UNREADABLE = "source_unreadable"
    TARGET_UNREADABLE = "target_unreadable"
    REFERENCE_UNREADABLE = "reference_unreadable"
    OVER_LIMITS = "over_limits"
    INSTRUCTION_EMPTY = "instruction_empty"
    INSTRUCTION_TOO_LONG = "instruction_too_long"
    INSTRUCTION_UNREADABLE = "instruction_unreadable"
    LISTING_MALFORMED = "listing_malformed"
    DUPLICATE_ID = "duplicate_id"
    REPLY_UNUSABLE = "reply_unusable"
    REQUEST_REFUSED = "request_refused"
    PATH_ESCAPES = "path_escapes"
    CURATOR_ERROR = "curator_error"
    # rejected
    DUPLICATE_SAMPLE = "duplicate_sample"
    SIZE_MISMATCH = "size_mismatch"
    LENGTH_MISMATCH = "length_mismatch"
    NO_VISIBLE_EDIT = "no_visible_edit"
    FIRST_FRAME_BELOW_THRESHOLD = "first_frame_below_threshold"
    SCORE_BELOW_THRESHOLD = "score_below_threshold"
    IMAGE_PAIR = "image_pair"
    TASK_NOT_ELIGIBLE = "task_not_eligible"
    GLOBAL_CHANGE = "global_change"
    NO_REGION = "no_region"
    REGION_TOO_SMALL = "region_too_small"
    REGION_TOO_LARGE = "region_too_large"
    MASK_DEGENERATE = "mask_degenerate"
    DUPLICATE_CROP = "duplicate_crop"
    EXTREME_ASPECT = "extreme_aspect"
    EXTREME_RESOLUTION = "extreme_resolution"
    REFERENCE_DEGENERATE = "reference_degenerate"
    REFERENCE_INCONSISTENT = "reference_inconsistent"
    DUPLICATE_REFERENCE = "duplicate_reference"


FAILURES = frozenset(
    {
        Reason.SOURCE_MISSING,
        Reason.TARGET_MISSING,
        Reason.REFERENCE_MISSING,
        Reason.SOURCE_UNREADABLE,
        Reason.TARGET_UNREADABLE,
        Reason.REFERENCE_UNREADABLE,
        Reason.OVER_LIMITS,
        Reason.INSTRUCTION_EMPTY,
        Reason.INSTRUCTION_TOO_LONG,
        Reason.INSTRUCTION_UNREADABLE,
        Reason.LISTING_MALFORMED,
        Reason.DUPLICATE_ID,
        Reason.REPLY_UNUSABLE,
        Reason.REQUEST_REFUSED,
        Reason.PATH_ESCAPES,
        Reason.CURATOR_ERROR,
    }
)

# Rejections after which a pair does not train as an instruction either.
WORTHLESS = frozenset(
    {
        Reason.DUPLICATE_SAMPLE,
        Reason.SIZE_MISMATCH,
        Reason.LENGTH_MISMATCH,
        Reason.NO_VISIBLE_EDIT,
        Reason.FIRST_FRAME_BELOW_THRESHOLD,
    }
)


@dataclass(frozen=True)
class EditPair:
    """One listed pair, before anything of it was read.

    Attributes:
        position: 0-based place in the source's own order; the dataset keeps this order.
        pair_id: the source's own id.
        src_video, tgt_video, ref_image: paths as the source lists them, relative to its root (ref_image: "" if none).
        prompt: the editing instruction.
        edit_type: the source's own word for the edit; "keyword_heuristic:TASK" where it has none.
        task: the same in our taxonomy.
        media: "video" or "image" (an image pair is a video of one frame).
        needs_reference: the instruction alone does not say what to make; such a pair trains only as a quadruplet.
        collection: which of the source's collections lists it (0 where there is one).
        problem, problem_detail: why the listed entry itself cannot be used; such a pair becomes a failed row.
    """

    position: int
    pair_id: str
    src_video: str
    tgt_video: str
    prompt: str
    edit_type: str
    task: Task
    source_dataset: str
    license: str
    ref_image: str = ""
    media: str = "video"
    needs_reference: bool = False
    collection: int = 0
    problem: Reason | None = None
    problem_detail: str = ""
