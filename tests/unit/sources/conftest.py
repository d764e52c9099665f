"""Collections in the layouts of the published ones, in a temporary folder or in fsspec's store in memory.

The store in memory is a fake of S3: it takes the same way through kiwi.storage as an s3:// address does, without a
service. Media are a few bytes: sources find files, and never look into them.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from kiwi.sources import archives, gpt_image_edit, nhr_edit, refvie

Written = Callable[[Mapping[str, bytes | str | list[object]]], str]


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    """Archives and listings are read once in a process; the tests' folders are all new, the addresses are not."""
    yield
    for cached in (
        archives.opened,
        archives._archives_in,
        refvie._references,
        nhr_edit._listings,
        gpt_image_edit._layout,
    ):
        cached.cache_clear()


@pytest.fixture(params=["local", "remote"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    """Writes a collection {path: bytes, text, a list for JSON} and returns its root; tests run in both places."""
    return writer(request.param, tmp_path)


@pytest.fixture
def written_here(tmp_path: Path) -> Written:
    """The same in a folder only."""
    return writer("local", tmp_path)


def writer(place: str, folder: Path) -> Written:
    def write(files: Mapping[str, bytes | str | list[object]]) -> str:
        root = str(folder / "collection") if place == "local" else f"memory://bucket/{folder.name}/collection"
        for name, content in files.items():
            data = json.dumps(content, ensure_ascii=False) if isinstance(content, list) else content
            put(f"{root}/{name}", data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
        return root

    return write


def put(path: str, data: bytes) -> None:
    from kiwi import storage

    if storage.is_remote(path):
        import fsspec

        fsspec.filesystem("memory").pipe_file(path, data)
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)


@pytest.fixture
def tar_of() -> Callable[[Iterable[tuple[str, bytes]]], bytes]:
    """The bytes of a tar archive of (name, data) members, in their order."""
    return _tar_of


def _tar_of(members: Iterable[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()
