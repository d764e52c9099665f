"""The thresholds of curation as a table, and bounds asked for on the command line, read against it.

Scores are stored and thresholds are queries: a bound here is a question to the rows, and `settings_for` says which
settings a build would need to give the same answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kiwi.configuration import CurationSettings
from kiwi.dataset.schema import Reason
from kiwi.errors import UsageError


@dataclass(frozen=True)
class Threshold:
    """One threshold that a build applies.

    Attributes:
        column: the stored measurement that it is held against.
        at_least: a floor; else a ceiling.
        reason: why a row leaves that does not pass.
        settings: of `curation`; of several, the strictest counts.
        largest: of the values that it can take, from 0.
        passes_unmeasured: a row that passed the stage without the measurement was not to be judged by it.
    """

    name: str
    stage: str
    column: str
    at_least: bool
    reason: Reason
    settings: tuple[str, ...]
    largest: float
    passes_unmeasured: bool = False


THRESHOLDS = (
    Threshold("score.first_frame", "score", "score_first_frame", True, Reason.FIRST_FRAME_BELOW_THRESHOLD,
              ("min_first_frame_score",), 10),
    Threshold("score.overall", "score", "score_overall", True, Reason.SCORE_BELOW_THRESHOLD,
              ("min_score", "min_reference_score"), 10),
    Threshold("ground.smallest", "ground", "region_area", True, Reason.REGION_TOO_SMALL, ("min_region",), 1, True),
    Threshold("ground.largest", "ground", "region_area", False, Reason.REGION_TOO_LARGE, ("max_region",), 1, True),
    Threshold("verify.consistency", "verify", "verify_consistency", True, Reason.REFERENCE_INCONSISTENT,
              ("min_verify",), 1),
)  # fmt: skip
INSTRUCTION = "score.instruction"  # no stage of its own: from where on a row without a reference trains as instruction
MEASURED = {"score": "score_", "ground": "region_", "segment": "mask_", "synthesize": "mask_crop_", "verify": "verify_"}
_CLIP = ("width", "height", "frames", "fps")  # measured by the scorer, which decodes
_ASKED = re.compile(r"([\w.]+)\s*(<=|>=|=)\s*(\S+)")


@dataclass(frozen=True)
class Bound:
    """A bound that is asked for. `own` is the run's value, None where the run had none or did not say."""

    name: str
    stage: str
    column: str
    at_least: bool
    value: float
    reason: str
    own: float | None = None
    threshold: Threshold | None = None

    @property
    def stricter(self) -> bool:
        """Whether a row that passed in the run may fail it."""
        return self.own is None or (self.value > self.own if self.at_least else self.value < self.own)


@dataclass(frozen=True)
class Cut:
    """All bounds of a re-cut, in the order in which a row meets them.

    Attributes:
        changed: those that differ from the run's.
        in_force: every threshold of the table and its value now, the unchanged too; None where it is not known.
        instruction: the score from which a row without a reference trains as instruction, now; None if not known.
        own_instruction: the same in the run.
    """

    changed: tuple[Bound, ...]
    in_force: Mapping[str, float | None]
    instruction: float | None
    own_instruction: float | None

    @property
    def asked(self) -> bool:
        """Whether the cut changes anything."""
        return bool(self.changed) or self.instruction != self.own_instruction


def run_values(parameters: Mapping[str, Any]) -> dict[str, float | None]:
    """The value of each threshold in the run that `parameters` (a manifest's, or a configuration's) tells of.

    A setting that the run did not know yet was off, which its default is.
    """
    said = parameters.get("curation")
    if not isinstance(said, Mapping):
        return dict.fromkeys([each.name for each in THRESHOLDS] + [INSTRUCTION])
    values: dict[str, float | None] = {}
    for each in THRESHOLDS:
        found = [_setting(said, name) for name in each.settings]
        values[each.name] = max(found) if each.at_least else min(found)
    return values | {INSTRUCTION: _setting(said, "min_score")}


def _setting(said: Mapping[str, Any], name: str) -> float:
    return float(said.get(name, CurationSettings.model_fields[name].default))


def parse_cut(asked: Sequence[str], columns: Iterable[str], parameters: Mapping[str, Any]) -> Cut:
    """Reads `NAME=VALUE`, `STAGE.MEASURE>=VALUE` and `STAGE.MEASURE<=VALUE`; their order plays no part.

    Args:
        asked: as given on the command line. A plain `=` is what the threshold is by nature, and a floor for a measure.
        columns: the columns that the rows have.

    Raises:
        UsageError: no such threshold or measurement, a value out of range, or one bound given twice.
    """
    known, own = set(columns), run_values(parameters)
    bounds: dict[tuple[str, bool], Bound] = {}
    instruction: float | None = None
    for text in asked:
        name, operator, value = _parts(text, known)
        if name == INSTRUCTION and operator != "<=":
            if instruction not in (None, value):
                raise UsageError(f"--set {name} is given twice: {instruction:g} and {value:g}", "give one of them")
            instruction = _within(text, value, 10)
            continue
        bound = _bound(text, name, operator, value, known, own)
        before = bounds.setdefault((bound.name, bound.at_least), bound)
        if before.value != bound.value:
            raise UsageError(f"--set {name} is given twice: {before.value:g} and {bound.value:g}", "give one of them")
    return _resolved(bounds, instruction, own, known)


def _resolved(
    bounds: dict[tuple[str, bool], Bound], instruction: float | None, own: dict[str, float | None], known: set[str]
) -> Cut:
    """With the two settings of the score made to agree: no row is good for a reference and too bad for instruction."""
    overall = bounds.get(("score.overall", True))
    if overall and instruction is not None and instruction > overall.value:
        raise UsageError(
            f"score.overall={overall.value:g} is below {INSTRUCTION}={instruction:g}",
            "what is good for a reference is good for instruction: raise the one or lower the other",
        )
    lowest = own[INSTRUCTION] if instruction is None else instruction
    if overall and lowest is not None:
        lowest = min(lowest, overall.value)
    if overall is None and instruction is not None and instruction > (own["score.overall"] or 0.0):
        text = f"score.overall={instruction:g}"
        bounds["score.overall", True] = _bound(text, "score.overall", "=", instruction, known, own)
    place = {each.name: number for number, each in enumerate(THRESHOLDS)}
    ordered = sorted(bounds.values(), key=lambda each: (place.get(each.name, 99), each.name, each.at_least))
    changed = tuple(bound for bound in ordered if bound.value != bound.own)
    in_force = {each.name: own[each.name] for each in THRESHOLDS}
    in_force |= {bound.name: bound.value for bound in changed if bound.threshold}
    return Cut(changed, in_force, lowest, own[INSTRUCTION])


def _parts(text: str, known: set[str]) -> tuple[str, str, float]:
    found = _ASKED.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"--set {text}: is no NAME=VALUE, NAME>=VALUE or NAME<=VALUE", _there_is(known))
    try:
        value = float(found[3])
    except ValueError:
        raise UsageError(f"--set {text}: {found[3]!r} is no number", "give a number, such as 8 or 0.5") from None
    if not math.isfinite(value):
        raise UsageError(f"--set {text}: {found[3]} is no bound", "give a number, such as 8 or 0.5")
    return found[1], found[2], value


def _bound(
    text: str, name: str, operator: str, value: float, known: set[str], own: Mapping[str, float | None]
) -> Bound:
    threshold = next((each for each in THRESHOLDS if each.name == name), None)
    if threshold and operator in ("=", ">=" if threshold.at_least else "<="):
        _within(text, value, threshold.largest)
        if threshold.column not in known:
            raise UsageError(f"--set {text}: {threshold.column} was not measured in this dataset", _there_is(known))
        reason = str(threshold.reason)
        own_value = own[name]
        return Bound(name, threshold.stage, threshold.column, threshold.at_least, value, reason, own_value, threshold)
    stage, _, measure = name.partition(".")
    column = threshold.column if threshold else _column(stage, measure)
    if not column or column not in known:
        raise UsageError(f"--set {text}: no threshold or measurement named {name}", _there_is(known))
    at_least = operator != "<="
    reason = f"{name} {'below' if at_least else 'above'} {value:g}"
    return Bound(name, stage, column, at_least, value, reason)


def _within(text: str, value: float, largest: float) -> float:
    if not 0 <= value <= largest:
        raise UsageError(f"--set {text}: lies outside 0 to {largest:g}", "a build takes no other value")
    return value


def _column(stage: str, measure: str) -> str:
    if stage == "score" and measure in _CLIP:
        return measure
    return f"{MEASURED[stage]}{measure}" if stage in MEASURED and measure else ""


def measurements(columns: Iterable[str]) -> list[str]:
    """What can be bounded besides the thresholds, as STAGE.MEASURE, of the columns given."""
    found = []
    for column in sorted(columns):
        stage = max(
            (stage for stage, prefix in MEASURED.items() if column.startswith(prefix)),
            key=lambda stage: len(MEASURED[stage]),
            default="",
        )
        if stage:
            found.append(f"{stage}.{column.removeprefix(MEASURED[stage])}")
        elif column in _CLIP:
            found.append(f"score.{column}")
    return found


def _there_is(known: set[str]) -> str:
    names = [each.name for each in THRESHOLDS if each.column in known] + [INSTRUCTION]
    taken = {each.column for each in THRESHOLDS}
    others = measurements(column for column in known if column not in taken)
    there_is = f"there is: {', '.join(names)}"
    return f"{there_is}; and as measured: {', '.join(others)}" if others else there_is


def settings_for(cut: Cut) -> tuple[dict[str, float], list[str]]:
    """What a build would need to be cut so: settings of `curation`, and the bounds that no setting can ask for."""
    settings: dict[str, float] = {}
    without = []
    for bound in cut.changed:
        if bound.threshold is None:
            without.append(f"{bound.name}{'>=' if bound.at_least else '<='}{bound.value:g}")
        elif bound.name == "score.overall":
            settings["min_reference_score"] = bound.value
        else:
            settings[bound.threshold.settings[0]] = bound.value
    if cut.instruction is not None and cut.instruction != cut.own_instruction:
        settings["min_score"] = cut.instruction
        overall = cut.in_force["score.overall"]
        if overall is not None:  # the stricter of both settings counts, so the other must be said as well
            settings["min_reference_score"] = overall
    return dict(sorted(settings.items())), without
