"""Cuts stored rows again at other thresholds: who would leave where, and whom nobody has measured.

A row that left at a threshold and passes it now comes back, but what later stages would say of it was never measured:
it counts as unmeasured at the next stage and is never guessed. A row that passed and now fails leaves at that stage,
for the threshold's reason. A row that left for a reason of its own still leaves there, unless an earlier stage takes
it. A repetition of a row that no longer stands is unmeasured, for nobody compared it with the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from kiwi.curation.funnel import Books, reconcile
from kiwi.curation.stored import Stored
from kiwi.curation.thresholds import THRESHOLDS, Bound, Cut, Threshold, parse_cut, run_values, settings_for
from kiwi.dataset.schema import CURATION_STAGES, FAILURES, WORTHLESS, Reason, Status, TrainsAs
from kiwi.dataset.statistics import funnel_of
from kiwi.errors import UsageError

UNMEASURED = "unmeasured"
SPLITS = ("source_dataset", "task", "license", "edit_type", "media")
REPEATS = frozenset({Reason.DUPLICATE_SAMPLE, Reason.DUPLICATE_REFERENCE, Reason.DUPLICATE_CROP})
_LOOKS_ALIKE = [str(each) for each in REPEATS - {Reason.DUPLICATE_SAMPLE}]  # a like row, not the same one again
_FIRST = "score.first_frame"  # comes before all that the whole clips are looked at for
_KEPT = len(CURATION_STAGES)
_AT, _REASON = pl.col("_at"), pl.col("reason")
_COUNTED = ("_move", "_at", "reason", "trains_as", "_enough")


@dataclass(frozen=True)
class Recut:
    """A funnel before and after, both reconciled; an entry after has `unmeasured` besides."""

    before: list[Books]
    after: list[Books]
    trains_before: dict[str, int]
    trains_after: dict[str, int]


def cut_of(stored: Stored, asked: Sequence[str]) -> Cut:
    """The bounds asked for, read against what was stored. Raises UsageError."""
    return parse_cut(asked, stored.numeric(), stored.parameters)


def recut(stored: Stored, cut: Cut, by: str = "") -> dict[str, Recut]:
    """The funnel before and after a cut: of all rows under "", and of the rows of each value of column `by`.

    Raises:
        UsageError: no such column to split by.
        FunnelError, CurationError: the rows do not add up.
    """
    columns = stored.columns()
    if by and (by not in SPLITS or by not in columns):
        raise UsageError(f"--by {by}: no such column to split by", f"there is: {', '.join(SPLITS)}")
    needed = [name for name in ("status", "stage", "reason") if name not in columns]
    if needed:
        raise UsageError(f"{stored.place}: its rows have no column {', '.join(needed)}", "this is no curated dataset")
    walk = _Walk(stored, cut, columns, funnel_of(stored.rows))
    counts = walk.counted([by] if by else [])
    split: dict[str, list[dict[str, Any]]] = {"": counts}
    for row in counts if by else ():
        split.setdefault(str(row[by]) if row[by] else "not stated", []).append(row)
    return {name: walk.told(rows) for name, rows in split.items()}


@dataclass(frozen=True)
class _Move:
    """Where a row goes now that it did not go in the run."""

    stage: int
    status: str
    reason: str = ""


class _Walk:
    """One cut through one set of rows: a row's move is an expression, and the moves are counted by group."""

    def __init__(
        self, stored: Stored, cut: Cut, columns: Mapping[str, pl.DataType], books: Sequence[Mapping[str, Any]]
    ) -> None:
        self.cut, self.columns = cut, columns
        self.moves: list[_Move] = [_Move(0, "")]  # 0: as in the run
        self._steps: list[tuple[pl.Expr, int]] = []
        self._given = _given(stored, columns)
        places = {stage: number for number, stage in enumerate(CURATION_STAGES)}
        at = pl.col("stage").replace_strict(places, default=0, return_dtype=pl.UInt8)
        at = pl.when(pl.col("status") == Status.KEPT).then(pl.lit(_KEPT, pl.UInt8)).otherwise(at)
        self._reasons = _reasons_by_stage(books)
        words = pl.Enum(sorted({"", *(reason for found in self._reasons for reason in found)}))
        self.rows = stored.rows.with_columns(at.alias("_at"), _REASON.fill_null("").cast(words))
        self._firsts = self._repeated()
        for place, stage in enumerate(CURATION_STAGES):
            self._stage(place, stage)
            self._repeats(place)

    def _stage(self, place: int, stage: str) -> None:
        changed = {bound.name: bound for bound in self.cut.changed if bound.stage == stage and bound.threshold}
        measured = [bound for bound in self.cut.changed if bound.stage == stage and not bound.threshold]
        back = self._left(place, [bound.reason for bound in changed.values()])
        table = [each for each in THRESHOLDS if each.stage == stage]
        for number, threshold in enumerate(table):
            later = [str(each.reason) for each in table[number + 1 :] if each.name not in changed]
            if threshold.name == _FIRST:
                later = sorted(self._reasons[place] - {threshold.reason})
            bound = changed.get(threshold.name) or self._unchanged(threshold)
            if bound is not None and threshold.name in changed:
                self._take(place, bound, _AT.gt(place), self._left(place, later))
            if bound is not None and changed:
                self._again(place, bound, back)
        for bound in measured:
            self._take(place, bound, _AT.gt(place), pl.lit(False))
            if changed:
                self._again(place, bound, back)
        if changed and stage == "score" and "frames" in self.columns:
            self._move(back & (pl.col("frames") == 1), _Move(place, Status.REJECTED, str(Reason.IMAGE_PAIR)))
        if changed:
            self._move(back, _Move(place + 1, UNMEASURED))

    def _unchanged(self, threshold: Threshold) -> Bound | None:
        """A threshold as the run had it, for rows that come back by another one of its stage."""
        value = self.cut.in_force[threshold.name]
        if value is None or threshold.column not in self.columns or (threshold.at_least and value == 0):
            return None
        named = threshold.name, threshold.stage, threshold.column, threshold.at_least
        return Bound(*named, value, str(threshold.reason), value, threshold)

    def _take(self, place: int, bound: Bound, passed: pl.Expr, decided_later: pl.Expr) -> None:
        """Rows that passed the stage, or met this bound before what they left for, and fail it now."""
        if not bound.stricter:
            return
        self._move((passed | decided_later) & self._fails(bound), _Move(place, Status.REJECTED, bound.reason))
        if not (bound.threshold and bound.threshold.passes_unmeasured):
            self._move(passed & _unknown(bound), _Move(place, UNMEASURED))

    def _again(self, place: int, bound: Bound, back: pl.Expr) -> None:
        """Rows that come back meet every bound of the stage with what was measured of them."""
        self._move(back & self._fails(bound), _Move(place, Status.REJECTED, bound.reason))
        self._move(back & _unknown(bound), _Move(place, UNMEASURED))

    def _fails(self, bound: Bound) -> pl.Expr:
        value, limit = pl.col(bound.column), pl.lit(bound.value)
        if bound.name == "verify.consistency" and self._given is not None:
            given, share = self._given
            limit = pl.when(given).then(limit * share).otherwise(limit)
        return (value < limit) if bound.at_least else (value > limit)

    def _is(self, reasons: Iterable[str]) -> pl.Expr:
        """Rows that left for one of these reasons, wherever."""
        wanted = [reason for reason in reasons if any(reason in found for found in self._reasons)]
        return _REASON.is_in(wanted) if wanted else pl.lit(False)

    def _left(self, place: int, reasons: Iterable[str]) -> pl.Expr:
        wanted = [reason for reason in reasons if reason in self._reasons[place]]
        return _AT.eq(place) & _REASON.is_in(wanted) if wanted else pl.lit(False)

    def _repeats(self, place: int) -> None:
        """Repetitions found at this stage whose first left before: at this stage they are unmeasured."""
        if not self._steps or self._firsts.is_empty() or not self._reasons[place] & REPEATS:
            return
        taken = [number for number, move in enumerate(self.moves) if number and move.stage <= place]
        gone = self._firsts.filter(_AT.gt(place) & self.move().is_in(taken))["iid"]
        if not gone.is_empty():
            lost = self._left(place, map(str, REPEATS)) & pl.col("dup_of").is_in(gone.implode())
            self._move(lost, _Move(place, UNMEASURED))

    def _repeated(self) -> pl.DataFrame:
        """The rows that others repeat, with all that moves them."""
        if not self.cut.changed or not {"iid", "dup_of"} <= self.columns.keys():
            return pl.DataFrame()
        repeating = self._is(map(str, REPEATS)) & (pl.col("dup_of") != "")
        named = self.rows.filter(repeating).select("dup_of").unique().collect(engine="streaming").to_series()
        if named.is_empty():
            return pl.DataFrame()
        moving = {"frames", "region_area", "region_kind", *(each.column for each in THRESHOLDS)}
        moving |= {"iid", "dup_of", *(bound.column for bound in self.cut.changed)}
        wanted = [pl.col(name) for name in sorted(moving & self.columns.keys())]
        same = self.rows.filter(pl.col("iid").is_in(named.implode()))
        return same.select("_at", "reason", *wanted).collect(engine="streaming")

    def _move(self, when: pl.Expr, move: _Move) -> None:
        if move not in self.moves:
            self.moves.append(move)
        self._steps.append((when, self.moves.index(move)))

    def move(self) -> pl.Expr:
        """A row's move: the first that applies to it."""
        chosen = pl.lit(0, pl.UInt8)
        for when, number in reversed(self._steps):
            chosen = pl.when(when).then(pl.lit(number, pl.UInt8)).otherwise(chosen)
        return chosen

    def counted(self, by: Sequence[str]) -> list[dict[str, Any]]:
        """Rows by what they were, what they become, what they are good for, and `by`."""
        trains_as = pl.col("trains_as") if "trains_as" in self.columns else pl.lit("", pl.String).alias("trains_as")
        made = [self.move().alias("_move"), self._enough().alias("_enough"), trains_as]
        rows = self.rows.select("_at", "reason", *by, *made).group_by([*_COUNTED, *by]).len()
        return rows.collect(engine="streaming").to_dicts()

    def _enough(self) -> pl.Expr:
        """Whether a row without a reference trains as instruction; null where it is not known."""
        wanted = {"score_overall", "needs_reference", "dup_of"}
        if self.cut.instruction is None or not self.cut.asked or not wanted <= self.columns.keys():
            return pl.lit(None, pl.Boolean)
        score = pl.col("score_overall").cast(pl.Float64)
        fit = (score >= self.cut.instruction).fill_null(False) & ~pl.col("needs_reference").fill_null(False)
        return fit & ((pl.col("dup_of").fill_null("") == "") | self._is(_LOOKS_ALIKE))

    def told(self, counts: Sequence[Mapping[str, Any]]) -> Recut:
        """The books of some of the counts, before and after."""
        before, after = _books(), _books()
        trains_before = {kind.value: 0 for kind in TrainsAs}
        trains_after = {**trains_before, UNMEASURED: 0}
        for row in counts:
            count, was_there = row["len"], _as_in_the_run(row)
            move = self.moves[row["_move"]] if row["_move"] else was_there
            _write(before, was_there, count)
            _write(after, move, count)
            was, now = str(row["trains_as"] or ""), self._trains_as(row, move)
            trains_before[was] = trains_before.get(was, 0) + count
            trains_after[now] = trains_after.get(now, 0) + count
        for books in (before, after):
            _carry(books, sum(row["len"] for row in counts))
            reconcile(books)
        return Recut(before, after, trains_before, trains_after)

    def _trains_as(self, row: Mapping[str, Any], move: _Move) -> str:
        if not row["_move"] and self.cut.instruction == self.cut.own_instruction:
            return str(row["trains_as"] or "")
        if move.status == Status.KEPT:
            return TrainsAs.QUADRUPLET.value
        if move.status == Status.FAILED or move.reason in WORTHLESS:
            return TrainsAs.NOTHING.value
        if move.status == UNMEASURED or row["_enough"] is None:
            return UNMEASURED
        return TrainsAs.INSTRUCTION.value if row["_enough"] else TrainsAs.NOTHING.value


def _given(stored: Stored, columns: Mapping[str, pl.DataType]) -> tuple[pl.Expr, float] | None:
    """Rows with a subject of their own, which the classical verifier holds against a share of the threshold."""
    classical = str(stored.curators.get("verify", "")).startswith("classical")
    if not classical or not {"region_area", "region_kind"} <= columns.keys():
        return None
    from kiwi.curation.curators.classical_verify import LOOSENESS

    return pl.col("region_area").is_null() & (pl.col("region_kind") == "object"), LOOSENESS


def _as_in_the_run(row: Mapping[str, Any]) -> _Move:
    if row["_at"] == _KEPT:
        return _Move(_KEPT, Status.KEPT)
    return _Move(row["_at"], Status.FAILED if row["reason"] in FAILURES else Status.REJECTED, str(row["reason"]))


def _reasons_by_stage(books: Sequence[Mapping[str, Any]]) -> list[set[str]]:
    return [{*entry["rejected"], *entry["failed"]} for entry in books]


def _unknown(bound: Bound) -> pl.Expr:
    value = pl.col(bound.column).cast(pl.Float64)
    return value.is_null() | value.is_nan()


def _books() -> list[Books]:
    return [
        {"stage": stage, "rows_in": 0, "kept": 0, "rejected": {}, "failed": {}, UNMEASURED: 0}
        for stage in CURATION_STAGES
    ]


def _write(books: list[Books], move: _Move, count: int) -> None:
    if move.status == Status.KEPT:
        return
    entry = books[move.stage]
    if move.status == UNMEASURED:
        entry[UNMEASURED] += count
    else:
        entry[move.status][move.reason] = entry[move.status].get(move.reason, 0) + count


def _carry(books: list[Books], standing: int) -> None:
    """Fills in rows in and kept, stage after stage."""
    for entry in books:
        entry["rows_in"] = standing
        standing -= sum(entry["rejected"].values()) + sum(entry["failed"].values()) + entry[UNMEASURED]
        entry["kept"] = standing


def said(found: Mapping[str, Recut], stored: Stored, cut: Cut, by: str = "") -> dict[str, Any]:
    """A re-cut as JSON: before and after, what a build would need, and the parts it was split into."""
    settings, without = settings_for(cut)
    thresholds = {
        name: {"run": value, "now": cut.in_force.get(name, value)}
        for name, value in run_values(stored.parameters).items()
        if name in cut.in_force
    }
    whole = {
        "place": stored.place,
        "thresholds": thresholds,
        "asked": [f"{bound.name}{'>=' if bound.at_least else '<='}{bound.value:g}" for bound in cut.changed],
        **_said(found[""]),
        "settings": {f"curation.{name}": value for name, value in settings.items()},
        "without_setting": without,
    }
    if by:
        whole["by"] = {"column": by, "parts": {name: _said(part) for name, part in found.items() if name}}
    return whole


def _said(part: Recut) -> dict[str, Any]:
    trains_as = {"before": part.trains_before, "after": part.trains_after}
    return {"before": part.before, "after": part.after, "trains_as": trains_as}
