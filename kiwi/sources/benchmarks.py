"""RefVIE-Bench and OpenVE-Bench: what is to be edited, without a target. For benchmarking; they cannot be curated."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kiwi import storage
from kiwi.dataset.schema import EditPair, Reason
from kiwi.sources.adapter import PairMedia, SourceError, SourceFailure
from kiwi.sources.delimited import read_records
from kiwi.sources.entries import missing_keys, readable
from kiwi.sources.folders import require_folder
from kiwi.sources.media_files import contained, find_file
from kiwi.sources.origins import UNSPECIFIED_LICENSE

REFVIE_BENCH_FILE = "refvie_bench.yaml"
OPENVE_BENCH_FILE = "benchmark_videos.csv"
_REFVIE_KEYS = ("src_video", "instruction", "ref_img", "edit_type")
_OPENVE_COLUMNS = ("edited_type", "prompt", "original_video")
REFVIE_CATEGORIES = {"subject": "Subject Reference", "background": "Background Replacement"}

# The paper's Table 2; it leaves out creative, camera and subtitle edits (`creative_edit`, …).
OPENVE_CATEGORIES = {
    "global_style": "Global Style",
    "background_change": "Background Change",
    "local_change": "Local Change",
    "local_remove": "Local Remove",
    "local_add": "Local Add",
}
_OPENVE_UNRATED = ("creative", "camera", "subtitle")


@dataclass(frozen=True)
class BenchmarkEntry:
    """One thing to edit.

    Attributes:
        id: the entry's number in the list and its clip's name: stable while the list is.
        source, reference: paths relative to the benchmark's root (reference: "" where there is none).
        edit_type: the list's own word.
        category: the paper's word for it; "" for what the paper leaves out.
    """

    id: str
    source: str
    instruction: str
    reference: str
    edit_type: str
    category: str


def read_refvie_bench(root: str, file: str = REFVIE_BENCH_FILE) -> list[BenchmarkEntry]:
    """Every entry of `refvie_bench.yaml`, in its order. Edit types begin with `subject` or `background`.

    `file`: a list of one's own in that form.

    Raises:
        SourceError: no list there, broken YAML, or an entry that lacks a key, has no text or another edit type, or
            leads out of the root.
    """
    path = storage.join(require_folder(root), file)
    listed = _yaml_list(path)
    entries = []
    for number, values in enumerate(listed):
        said = f"{path}: entry {number + 1}"
        texts = _texts(said, values, _REFVIE_KEYS)
        entries.append(
            BenchmarkEntry(
                id=_identifier(number, texts["src_video"]),
                source=_inside(root, texts["src_video"], said),
                instruction=texts["instruction"],
                reference=_inside(root, texts["ref_img"], said),
                edit_type=texts["edit_type"],
                category=_refvie_category(said, texts["edit_type"]),
            )
        )
    return entries


def read_openve_bench(root: str, every_type: bool = False, file: str = OPENVE_BENCH_FILE) -> list[BenchmarkEntry]:
    """The entries of `benchmark_videos.csv` that the paper rates, in its order; with `every_type`, all of them.

    `file`: a list of one's own in that form.

    Raises:
        SourceError: no list there, no such columns, or a line that cannot be read, has an unknown edit type, or leads
            out of the root.
    """
    root = require_folder(root)
    path = storage.join(root, file)
    entries = []
    for number, record in enumerate(read_records(path, _OPENVE_COLUMNS)):
        said = f"{path}: line {record.line}"
        if record.problem:
            raise SourceError(f"{path}: {record.problem}", "mend that line")
        texts = _texts(said, dict(record.cells), _OPENVE_COLUMNS)
        category = _openve_category(said, texts["edited_type"])
        if category or every_type:
            source = _inside(root, texts["original_video"], said)
            name = _identifier(number, source)
            entries.append(BenchmarkEntry(name, source, texts["prompt"], "", texts["edited_type"], category))
    return entries


def _refvie_category(said: str, edit_type: str) -> str:
    for word, category in REFVIE_CATEGORIES.items():
        if edit_type.lower().startswith(word):
            return category
    known = " or ".join(REFVIE_CATEGORIES)
    raise SourceError(f"{said}: unknown edit_type {edit_type!r}", f"correct it: an edit_type begins with {known}")


def _openve_category(said: str, edited_type: str) -> str:
    """The paper's word; "" for what the paper leaves out."""
    word = edited_type.lower()
    if word in OPENVE_CATEGORIES or word.startswith(_OPENVE_UNRATED):
        return OPENVE_CATEGORIES.get(word, "")
    left_out = ", ".join(f"{each}_edit" for each in _OPENVE_UNRATED)
    known = f"{', '.join(OPENVE_CATEGORIES)}, and {left_out}, which are not rated"
    raise SourceError(f"{said}: unknown edited_type {edited_type!r}", f"correct it: the types are {known}")


def open_entry(root: str, entry: BenchmarkEntry) -> tuple[bytes | Path, bytes | Path | None]:
    """The source clip and the reference (None: none). Raises SourceFailure where one is missing or leads out.

    Listed paths may begin with the benchmark's own folder (`OpenVE-Bench/videos/…`).
    """
    root = root.rstrip("/")
    reference = None
    source = find_file(root, _unprefixed(root, entry.source), Reason.SOURCE_MISSING)
    if entry.reference:
        reference = find_file(root, _unprefixed(root, entry.reference), Reason.REFERENCE_MISSING)
    return source, reference


def find_entry(root: str, entry: BenchmarkEntry) -> list[Path | str]:
    """Where the source clip and the reference, if there is one, lie: paths here, addresses in a store. Nothing is
    fetched. Raises as `open_entry` does."""
    if not storage.is_remote(root):
        return [media for media in open_entry(root, entry) if isinstance(media, Path)]
    root = root.rstrip("/")
    places: list[Path | str] = []
    for listed in filter(None, (entry.source, entry.reference)):
        place = storage.join(root, contained(root, _unprefixed(root, listed)))
        if not storage.exists(place) or storage.is_folder(place):
            missing = Reason.SOURCE_MISSING if listed == entry.source else Reason.REFERENCE_MISSING
            raise SourceFailure(missing, f"{listed}: no such file in {root}")
        places.append(place)
    return places


@dataclass(frozen=True)
class Benchmark:
    """A benchmark among the adapters: it is listed there, and says what to use instead when it is to be curated."""

    name: str
    title: str
    license: str
    layout: str
    reader: str

    def check(self, root: str) -> None:
        self._refuse(root)

    def entries(self, root: str) -> Iterator[EditPair]:
        self._refuse(root)

    def open(self, root: str, pair: EditPair) -> PairMedia:
        self._refuse(root)

    def _refuse(self, root: str) -> NoReturn:
        said = f"{root}: {self.title} has no edited clips, so there are no pairs to curate"
        raise SourceError(said, f"it is for benchmarking: kiwi.sources.benchmarks.{self.reader}")


def _yaml_list(path: str) -> list[Any]:
    import yaml

    try:
        listed = yaml.load(storage.read_bytes(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # nosec B506 - safe
    except storage.StorageError as error:
        raise SourceError(error.message, error.remedy) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        raise SourceError(f"{path}:{where} broken YAML: {first}", "fetch the file again") from error
    if not isinstance(listed, list) or not listed:
        raise SourceError(f"{path}: is no list of entries", f"expected a list with {', '.join(_REFVIE_KEYS)}")
    return listed


def _texts(said: str, values: Any, keys: tuple[str, ...]) -> dict[str, str]:
    if not isinstance(values, dict):
        raise SourceError(f"{said}: is no object", f"expected {', '.join(keys)}")
    missing = missing_keys(values, keys)
    wrong = [key for key in keys if key in values and not (isinstance(values[key], str) and values[key].strip())]
    if missing or wrong:
        why = missing or f"{', '.join(wrong)}: no text"
        raise SourceError(f"{said}: {why}", f"expected {', '.join(keys)}")
    unread = [key for key in keys if readable(values[key]) != values[key]]
    if unread:
        raise SourceError(f"{said}: {', '.join(unread)}: no UTF-8 text", "save the list as UTF-8")
    return {key: values[key].strip() for key in keys}


def _inside(root: str, listed: str, said: str) -> str:
    try:
        return contained(root, listed)
    except SourceFailure as failure:
        raise SourceError(
            f"{said}: {failure.detail}", "correct the path: relative to the benchmark's folder"
        ) from failure


def _identifier(number: int, path: str) -> str:
    return f"{number:04d}_{posixpath.basename(path).rpartition('.')[0]}"


def _unprefixed(root: str, path: str) -> str:
    """A path without the benchmark's own folder, where that begins it and there is no such folder inside."""
    first, _, rest = path.partition("/")
    if rest and first.lower().endswith("-bench") and not storage.is_folder(storage.join(root, first)):
        return rest
    return path


REFVIE_BENCH = Benchmark(
    "refvie-bench",
    "RefVIE-Bench",
    UNSPECIFIED_LICENSE,
    "refvie_bench.yaml: src_video, instruction, ref_img, edit_type; ref_images/, source_videos/",
    "read_refvie_bench",
)
OPENVE_BENCH = Benchmark(
    "openve-bench",
    "OpenVE-Bench",
    "CC-BY-NC-4.0",
    "benchmark_videos.csv: edited_type, prompt, original_video; videos/",
    "read_openve_bench",
)
