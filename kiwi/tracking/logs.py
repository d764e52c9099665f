"""Log lines for machines: one JSON object an event with run, task, shard and sample, where KIWI_LOG=json asks for it.

KIWI_LOG=json is what images and pods have; KIWI_LOG=text gives one plain line an event; without it a laptop's terminal
belongs to the live view, and the task records tell everything. Lines go to stderr, secrets blacked out.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from kiwi.errors import UsageError
from kiwi.tracking.redaction import redact, redacted

Mode = Literal["json", "text", "off"]
VARIABLE = "KIWI_LOG"
PROGRESS_SECONDS = 10.0
RESERVED = ("time", "level", "event", "message", "run", "task", "shard", "sample")


@dataclass(frozen=True)
class Scope:
    """Whose lines they are."""

    run: str = ""
    task: str = ""
    shard: int | None = None


_scope: ContextVar[Scope | None] = ContextVar("kiwi_log_scope", default=None)


def log_mode() -> Mode:
    """KIWI_LOG, else "json" in a Kubernetes pod, else "off". Raises UsageError for another word."""
    said = os.environ.get(VARIABLE, "").strip().lower()
    if not said:
        return "json" if os.environ.get("KUBERNETES_SERVICE_HOST") else "off"
    for mode in ("json", "text", "off"):
        if said == mode:
            return mode
    raise UsageError(f"{VARIABLE}={said!r} is no kind of log", "json, text or off")


def log(event: str, level: str = "info", sample: str | None = None, message: str = "", **said: Any) -> None:
    """One event of the task at work, or of none."""
    mode = log_mode()
    if mode == "off":
        return
    whose = _scope.get() or Scope()
    line: dict[str, Any] = {"time": _now(), "level": level, "event": event}
    known = {"run": whose.run, "task": whose.task, "shard": whose.shard, "sample": sample, "message": message}
    line |= {name: value for name, value in known.items() if value not in (None, "")}
    line |= {(f"{name}_" if name in RESERVED else name): value for name, value in said.items() if value is not None}
    _write(_as_json(line) if mode == "json" else _as_text(line))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _as_json(line: Mapping[str, Any]) -> str:
    return json.dumps(_finite(redacted(line)), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become text, since a loss that is NaN is what one looks for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _as_text(line: Mapping[str, Any]) -> str:
    who = line.get("task", "-") + (f"-{line['shard']}" if "shard" in line else "")
    rest = {key: value for key, value in line.items() if key == "sample" or key not in RESERVED}
    said = " ".join(f"{key}={value}" for key, value in rest.items())
    words = [line["time"], line["level"].upper(), who, line["event"], line.get("message", ""), said]
    return " ".join(redact(" ".join(word for word in words if word)).splitlines())


def _write(text: str) -> None:
    """One write a line, so that lines of several processes do not mix; a log that is gone stops no work."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):  # whoever read the log has closed it
        return


@contextmanager
def scope(run: str, task: str, shard: int | None) -> Iterator[None]:
    """Names the run, task and shard in every line, also in those of Python's logging and of a traceback."""
    token = _scope.set(Scope(run, task, shard))
    mode = log_mode()
    if mode == "json":
        _take_over()
    try:
        yield
    finally:
        _scope.reset(token)


class Throttle:
    """Lets one event in `seconds` through."""

    def __init__(self, seconds: float = PROGRESS_SECONDS) -> None:
        self._seconds = seconds
        self._last = -math.inf

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


class _LoggingToLines(logging.Handler):
    """What libraries say through Python's logging, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            said = record.getMessage()
        except (TypeError, ValueError):  # a library's own mistake in its arguments
            said = str(record.msg)
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else None
        log("log", level=record.levelname.lower(), message=said, logger=record.name, traceback=trace)


def _take_over() -> None:
    """Python's logging, its warnings and an uncaught exception become lines too; once a process."""
    root = logging.getLogger()
    if any(isinstance(handler, _LoggingToLines) for handler in root.handlers):
        return
    root.handlers = [_LoggingToLines()]
    if root.level > logging.WARNING or root.level == logging.NOTSET:
        root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _say_uncaught


def _say_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    whole = "".join(traceback.format_exception(kind, error, trace))
    log("uncaught", level="error", message=f"{kind.__name__}: {error}", traceback=whole)
