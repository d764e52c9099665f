"""What an adapter is: one published collection's layout, read into editing pairs; and how its failures are told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kiwi.dataset.schema import EditPair, Reason
from kiwi.errors import KiwiError, UsageError


class SourceError(UsageError):
    """A source that cannot be listed: nothing of it can be used. Exit code 2."""


class SourceFailure(KiwiError):  # noqa: N818 - the failure of one row, not of the source
    """One listed pair whose media cannot be opened: its row is quarantined with `reason`, the run goes on."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class PairMedia:
    """The files of one pair: a path on this machine, or the bytes of a remote object. `reference` is None if not given.

    `extension` and `target_extension` are lower case with the dot (".mp4").
    """

    source: bytes | Path
    target: bytes | Path
    reference: bytes | Path | None
    extension: str
    target_extension: str


class Adapter(Protocol):
    """One collection's layout. `root` is a local folder or an s3:// address; `name` is what settings call it.

    `title`, `license` (SPDX where there is one) and `layout` are a line each, for people.
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def license(self) -> str: ...

    @property
    def layout(self) -> str: ...

    def check(self, root: str) -> None:
        """Raises SourceError where `root` cannot be this collection: no folder, no listing file, columns missing."""

    def entries(self, root: str) -> Iterator[EditPair]:
        """Every listed pair, positions from 0, in an order that does not change; one that is no use has a `problem`.

        Raises:
            SourceError: a listing file is missing, or broken as a whole.
        """

    def open(self, root: str, pair: EditPair) -> PairMedia:
        """The media of a listed pair.

        Raises:
            SourceFailure: with the typed reason, for what is wrong with this row.
            SourceError: an archive is broken or incomplete: no row's fault, as any row may be in it.
            StorageError: the store cannot be asked.
        """
