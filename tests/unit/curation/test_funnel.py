"""The funnel reconciles whatever happens to the rows, and says so when it is lied to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiwi.curation.errors import CurationError
from kiwi.curation.funnel import add_books, funnel, reconcile
from kiwi.curation.parts import counted
from kiwi.dataset.schema import CURATION_STAGES, FAILURES, Reason

OUTCOMES = st.one_of(st.none(), st.tuples(st.sampled_from(CURATION_STAGES), st.sampled_from(sorted(Reason))))


def row(outcome: tuple[str, Reason] | None) -> dict[str, str]:
    if outcome is None:
        return {"status": "kept", "stage": CURATION_STAGES[-1], "reason": ""}
    stage, reason = outcome
    return {"status": "failed" if reason in FAILURES else "rejected", "stage": stage, "reason": str(reason)}


@given(st.lists(OUTCOMES, max_size=200), st.integers(1, 5))
def test_the_funnel_reconciles_and_books_of_shards_add_up_to_it(
    outcomes: list[tuple[str, Reason] | None], shards: int
) -> None:
    rows = [row(outcome) for outcome in outcomes]
    whole = funnel(rows)
    reconcile(whole)
    assert whole[0]["rows_in"] == len(rows)
    assert whole[-1]["kept"] == sum(outcome is None for outcome in outcomes)
    books = []
    for number, stage in enumerate(CURATION_STAGES):
        gone = set(CURATION_STAGES[:number])
        for shard in range(shards):
            seen = [
                dict(one, status="kept", reason="") if one["stage"] in CURATION_STAGES[number + 1 :] else one
                for one in rows[shard::shards]
                if one["status"] == "kept" or one["stage"] not in gone
            ]
            books.append({"stage": stage, **counted(seen, stage)})
    assert add_books(books) == whole


def test_a_row_that_vanished_is_noticed() -> None:
    books = funnel([row(None), row(("score", Reason.IMAGE_PAIR))])
    books[1]["kept"] -= 1
    with pytest.raises(CurationError, match="score: 2 rows in, 1 out"):
        reconcile(books)


def test_a_rejection_without_a_reason_is_refused() -> None:
    with pytest.raises(CurationError, match="reason ''"):
        funnel([{"status": "rejected", "stage": "score", "reason": ""}])
    with pytest.raises(CurationError, match="rejected for source_missing"):
        funnel([{"status": "rejected", "stage": "score", "reason": "source_missing"}])
