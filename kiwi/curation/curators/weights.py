"""Released weights, loaded in one place: every way in which they may be out of reach becomes one clear line.

Only safetensors are read, never pickles; nothing of this loads torch before weights are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kiwi.configuration import ImageEditorSettings, WeightsSettings
from kiwi.curation.curators.hub import cached_where_hub_is_away
from kiwi.errors import KiwiError, UsageError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_UNREACHED = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectError", "ConnectTimeout", "ConnectionError")
_ABSENT = ("RepositoryNotFoundError", "HFValidationError")
_DAMAGED = ("SafetensorError", "JSONDecodeError")


class WeightsError(KiwiError):
    """Weights that cannot be had, or do not fit where they should work."""


def version(constant: str, settings: WeightsSettings) -> str:
    """What rows bear as a curator's version: the code's own constant, the model, its revision and its precision."""
    lora = f"+{settings.lora}" if isinstance(settings, ImageEditorSettings) and settings.lora else ""
    return f"{constant}-{settings.model}@{settings.revision or 'main'}{lora}-{settings.dtype}"


def device(setting: str, settings: WeightsSettings) -> str:
    """The device's name for torch; "auto" is CUDA where there is a GPU.

    Raises:
        UsageError: a name that torch does not know, or CUDA where there is none.
    """
    import torch

    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(settings.device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        said = f'{setting}.device: no device is called "{settings.device}"'
        raise UsageError(said, 'it is "auto", "cpu", "cuda" or "cuda:N"')
    if kind == "cuda" and not torch.cuda.is_available():
        said = f'{setting}.device is "{settings.device}", and this machine has no GPU that torch can use'
        raise UsageError(said, f'set {setting}.device to "auto" or "cpu"')
    return settings.device


def dtype(settings: WeightsSettings) -> Any:
    """torch's type of `settings.dtype`."""
    import torch

    return getattr(torch, settings.dtype)


def pretrained(model: Any, setting: str, settings: WeightsSettings, dtype: Any, subfolder: str = "") -> Any:
    """A transformers model, whole, on the CPU, ready to infer.

    Raises:
        WeightsError: see `loading`; or the weights leave a part of this model as it was drawn at random.
    """
    with loading(setting, settings.model), cached_where_hub_is_away(settings.model):
        options = {"revision": settings.revision or "main", "dtype": dtype, "use_safetensors": True}
        where = {"subfolder": subfolder, "output_loading_info": True}
        loaded, report = model.from_pretrained(settings.model, **where, **options)
    left = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", ()))
    check_whole(setting, settings, model.__name__, left)
    return loaded.eval().requires_grad_(False)


def check_whole(setting: str, settings: WeightsSettings, kind: str, left: Sequence[str]) -> None:
    """Raises WeightsError where tensors are `left` without weights: libraries only log it, and draw them at random."""
    if left:
        said = f"{setting}.model: {settings.model} holds no weights for {len(left)} tensors ({left[0]}, …)"
        raise WeightsError(said, f"it is no {kind}, or incomplete: give another model, or download it again")


@contextmanager
def loading(setting: str, model: str, field: str = "model") -> Iterator[None]:
    """Turns whatever goes wrong while `model` is loaded into one line.

    Args:
        setting, field: where the configuration names it: `<setting>.<field>`, such as "curation.sam3.model".

    Raises:
        WeightsError: gated, missing, out of reach, damaged, only as a pickle, too large, or of a library that is
            not there.
    """
    key = f"{setting}.{field}"
    _check_folder(key, model)
    with within_memory(f"loading {model}", f"set {setting}.dtype to bfloat16, or use a machine with more memory"):
        try:
            yield
        except (KiwiError, MemoryError):
            raise
        except Exception as error:
            if _is_memory(error):
                raise
            raise _explained(key, model, error) from error


@contextmanager
def within_memory(doing: str, remedy: str) -> Iterator[None]:
    """Turns running out of memory, the accelerator's or the machine's, into a WeightsError that says what to lower."""
    try:
        yield
    except Exception as error:
        if not _is_memory(error):
            raise
        raise WeightsError(f"out of memory while {doing}", remedy) from error


def once(load: Callable[[], Any]) -> Callable[[], Any]:
    """`load`, called at the first use and never again. Failures are not kept."""
    kept: list[Any] = []

    def loaded() -> Any:
        if not kept:
            kept.append(load())
        return kept[0]

    return loaded


def _check_folder(key: str, model: str) -> None:
    folder = Path(model)
    if not model.strip():
        raise WeightsError(f"{key} is empty", "give a folder that save_pretrained wrote, or a repository of the hub")
    if folder.is_dir():
        pickles = _pickles(folder)
        if pickles and not any(folder.rglob("*.safetensors")):
            raise WeightsError(*_pickled(key, model, pickles[0]))
    elif folder.exists():
        raise WeightsError(f"{key}: {model} is a file", "give the folder that save_pretrained wrote")
    elif folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        remedy = "give a folder that save_pretrained wrote, or a repository of the Hugging Face hub"
        raise WeightsError(f"{key}: there is no folder {model}", remedy)


def _pickles(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix in _PICKLES)


def _pickled(key: str, model: str, found: str) -> tuple[str, str]:
    said = f"{key}: {model} holds its weights as a pickle ({found}), which can run any code: not loaded"
    return said, "give a revision with .safetensors, or save it anew with safetensors where you trust it"


def _explained(key: str, model: str, error: Exception) -> WeightsError:
    """The line for whatever a library raised; its innermost cause says most."""
    chain = _causes(error)
    kinds = [kind.__name__ for cause in chain for kind in type(cause).__mro__]
    codes = [code for cause in chain if (code := _status(cause)) is not None]
    page = f"https://huggingface.co/{model}"
    local = f"or set {key} to a local folder"
    folder = Path(model).is_dir()
    if "GatedRepoError" in kinds or 403 in codes:
        said = f"{key}: {model} is gated, and this account may not read it"
        return WeightsError(said, f"accept its licence at {page} and log in (`hf auth login`, or HF_TOKEN), {local}")
    if "RevisionNotFoundError" in kinds:
        said = f"{key.rpartition('.')[0]}.revision: {model} has no such revision"
        return WeightsError(said, f"see {page}/commits, {local}")
    if any(kind in kinds for kind in _ABSENT) or 401 in codes or 404 in codes:
        said = f"{key}: there is no model {model}, or it is private"
        return WeightsError(said, f"see {page}; log in if it is yours (`hf auth login`, or HF_TOKEN), {local}")
    if any(kind in kinds for kind in _UNREACHED) or "couldn't connect" in str(error).lower():
        said = f"{key}: {model} is not in the local cache, and the hub cannot be reached"
        return WeightsError(said, f"download it where there is a network (`hf download {model}`; {page}), {local}")
    if any(kind in kinds for kind in _DAMAGED):
        return WeightsError(f"{key}: a file of {model} is damaged ({_line(chain[-1])})", "download it again")
    if isinstance(chain[-1], ImportError):
        said = f"{key}: {model} needs a library that is not installed ({_line(chain[-1])})"
        return WeightsError(said, 'install the extra "train" (pip install "kiwi[train]")')
    pickles = _pickles(Path(model)) if folder else ["no .safetensors file in it"]
    if "safetensors" in str(error) and pickles:
        return WeightsError(*_pickled(key, model, pickles[0]))
    remedy = "is it whole? download it again" if folder else f"see {page}, {local}"
    return WeightsError(f"{key}: {model} cannot be loaded: {_line(error)}", remedy)


def _causes(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    return chain


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None


def _line(error: BaseException) -> str:
    """The first line of what it says."""
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


def _is_memory(error: BaseException) -> bool:
    """torch raises OutOfMemoryError for the GPU, and for the CPU a RuntimeError of its allocator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
