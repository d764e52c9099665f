"""How an editor is used where nothing else is said: frame size, window and steps that belong to its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from kiwi.model.errors import ModelError
from kiwi.model.flow import SHIFT, TRAINING_STEPS

BOUNDS = {
    "size": (1, 8192),
    "frames": (1, 4096),
    "overlap": (0, 4095),
    "steps": (1, TRAINING_STEPS),
    "batch_size": (1, 256),
}


@dataclass(frozen=True)
class EditDefaults:
    """What `model_index.json` says of editing with a model.

    Attributes:
        size: the square root of the pixels that the model sees of a frame.
        frames: that the model sees at once, 4k + 1; longer clips are edited in windows.
        overlap: frames that a window shares with the one before, at least.
        steps: evaluations of the model for each window.
        shift: of the noise levels, as in training.
        batch_size: windows that are denoised together.
    """

    size: int
    frames: int
    overlap: int
    steps: int
    shift: float = SHIFT
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Raises ModelError for values that no edit can have."""
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                said = f"the model's edit default {name} is {value!r}"
                raise ModelError(said, f"it is a whole number from {least} to {most}")
        if not isinstance(self.shift, int | float) or not 0 < self.shift < 1000:
            raise ModelError(f"the model's edit default shift is {self.shift!r}", "the released weights have 5")


_SMALL = EditDefaults(size=64, frames=9, overlap=4, steps=5, batch_size=8)
_RELEASED = EditDefaults(size=960, frames=81, overlap=16, steps=50)
_BY_PRESET = {
    "tiny": _SMALL,
    "middle": _SMALL,
    "wan2.1-14b": EditDefaults(size=960, frames=49, overlap=12, steps=50),  # the frames that its authors trained it on
}


def defaults_of(preset: str) -> EditDefaults:
    """The defaults of a preset; those of the released 5B for a name that is not known."""
    return _BY_PRESET.get(preset, _RELEASED)


def defaults_as_json(defaults: EditDefaults) -> dict[str, Any]:
    return asdict(defaults)


def defaults_of_json(said: Any, preset: str) -> EditDefaults:
    """The inverse of `defaults_as_json`; folders that are older than the defaults say None and mean their preset's.

    Raises:
        ModelError: a setting that there is not, or a value that cannot be.
    """
    if said is None:
        return defaults_of(preset)
    known = {field.name for field in fields(EditDefaults)}
    if not isinstance(said, dict) or not known - {"shift", "batch_size"} <= set(said) <= known:
        raise ModelError(f"the model's edit defaults are {said!r}", f"they are {', '.join(sorted(known))}")
    return EditDefaults(**said)
