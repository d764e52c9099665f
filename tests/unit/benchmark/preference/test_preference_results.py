"""Results of a study: what counts, who is flagged, what is exported."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from kiwi.benchmark.preference.choices import Vote, outcome
from kiwi.benchmark.preference.exporting import export_votes
from kiwi.benchmark.preference.results import check_result, results
from kiwi.benchmark.preference.study import Study
from kiwi.errors import UsageError


def check(rater: str, item: str, choice: str, flipped: bool = False) -> Vote:
    return Vote(rater, item, item.partition("|")[0], flipped, choice, 9.0, 0.0)  # type: ignore[arg-type]


def test_a_choice_of_a_side_is_read_by_what_was_on_it() -> None:
    assert outcome("left", False) == outcome("right", True) == "first"
    assert outcome("left", True) == outcome("right", False) == "second"
    assert outcome("tie", True) == "tie"


def test_a_tie_is_half_a_win_and_both_bad_is_counted_apart(
    make_study: Callable[..., Study], make_votes: Callable[..., list[Vote]]
) -> None:
    study = make_study(samples=10)
    outcomes = ["first"] * 5 + ["second"] * 2 + ["tie"] + ["both_bad"] * 2
    votes = make_votes([("a", f"s{place}", "model0", "model1", each) for place, each in enumerate(outcomes)])
    said = results(study, votes, overlap=1)["all"]
    pair = said["pairs"][0]
    assert (pair["wins"], pair["losses"], pair["ties"], pair["both_bad"]) == (5, 2, 1, 2)
    assert pair["win_rate"]["value"] == 5.5 / 8
    assert (said["ties"], said["both_bad"], pair["samples"]) == (1, 2, 8)


def test_flipped_sides_do_not_change_who_won(
    make_study: Callable[..., Study], make_votes: Callable[..., list[Vote]]
) -> None:
    study = make_study(samples=10)
    votes = make_votes([("a", f"s{place}", "model0", "model1", "first") for place in range(10)])
    turned = [dataclasses.replace(vote, flipped=True, choice="right") for vote in votes]
    assert results(study, votes, overlap=1)["all"]["pairs"] == results(study, turned, overlap=1)["all"]["pairs"]
    assert results(study, turned, overlap=1)["all"]["left_share"]["value"] == 0.0


def test_scores_of_two_sets_are_the_log_odds_of_their_wins(
    make_study: Callable[..., Study], make_votes: Callable[..., list[Vote]]
) -> None:
    study = make_study(samples=40)
    votes = make_votes(
        [("a", f"s{place}", "model0", "model1", "first" if place % 4 else "second") for place in range(40)]
    )
    scores = results(study, votes, overlap=1)["all"]["scores"]
    apart = scores["model0"]["value"] - scores["model1"]["value"]
    assert math.isclose(apart, 400 * math.log10(30.5 / 10.5), abs_tol=0.2)  # the prior adds half a win to each
    assert scores["model0"]["low"] < scores["model0"]["value"] < scores["model0"]["high"]


def test_three_sets_are_ranked_as_their_votes_say(
    make_study: Callable[..., Study],
    make_votes: Callable[..., list[Vote]],
    all_pairs: Callable[[Study], list[tuple[str, str, str]]],
) -> None:
    study = make_study(samples=30, sets=3)
    votes = make_votes([("a", *pair, "second" if int(pair[0][1:]) % 3 else "first") for pair in all_pairs(study)])
    scores = results(study, votes, overlap=1)["all"]["scores"]
    assert scores["model2"]["value"] > scores["model1"]["value"] > scores["model0"]["value"]
    assert math.isclose(sum(each["value"] for each in scores.values()), 3000, abs_tol=0.3)


def test_without_votes_nothing_is_claimed(make_study: Callable[..., Study]) -> None:
    said = results(make_study(), [], overlap=2)
    assert said["all"]["scores"] is None
    assert said["all"]["scores_missing"]
    assert said["all"]["pairs"][0]["win_rate"] is None
    assert said["all"]["agreement"]["alpha"] is None
    assert said["without_flagged"] is None


def test_sets_not_linked_by_any_vote_are_not_ranked(
    make_study: Callable[..., Study], make_votes: Callable[..., list[Vote]]
) -> None:
    votes = make_votes([("a", f"s{place}", "model0", "model1", "first") for place in range(10)])
    said = results(make_study(sets=3), votes, overlap=1)["all"]
    assert said["scores"] is None
    assert "compared" in said["scores_missing"]


def test_win_rates_are_told_for_each_kind_of_edit(
    make_study: Callable[..., Study], make_votes: Callable[..., list[Vote]]
) -> None:
    study = make_study(samples=20, kinds=2)
    rows = [("a", f"s{place}", "model0", "model1", "second" if place % 2 else "first") for place in range(20)]
    kinds = results(study, make_votes(rows), overlap=1)["all"]["pairs"][0]["kinds"]
    assert {name: each["win_rate"]["value"] for name, each in kinds.items()} == {"kind0": 1.0, "kind1": 0.0}


def test_attention_checks_pass_fail_or_stay_unclear() -> None:
    assert check_result(check("a", "same|s0", "tie")) == "passed"
    assert check_result(check("a", "same|s0", "both_bad")) == "passed"
    assert check_result(check("a", "same|s0", "left")) == "failed"
    assert check_result(check("a", "damaged|s0", "left")) == "passed"
    assert check_result(check("a", "damaged|s0", "right", flipped=True)) == "passed"
    assert check_result(check("a", "damaged|s0", "right")) == "failed"
    assert check_result(check("a", "damaged|s0", "tie")) == "failed"
    assert check_result(check("a", "damaged|s0", "both_bad")) == "unclear"


def test_results_are_told_with_and_without_a_rater_who_fails_checks(
    make_study: Callable[..., Study], make_votes: Callable[..., list[Vote]]
) -> None:
    study = make_study(samples=10, attention_share=0.2)
    rows = [("good", f"s{place}", "model0", "model1", "first") for place in range(10)]
    rows += [("careless", f"s{place}", "model0", "model1", "second") for place in range(10)]
    votes = make_votes(rows)
    votes += [check("good", "same|s0", "tie"), check("good", "damaged|s1", "left"), check("good", "same|s2", "left")]
    votes += [check("careless", "same|s0", "right"), check("careless", "damaged|s1", "right")]
    said = results(study, votes, overlap=2)
    assert said["flagged"] == ["careless"]
    assert said["all"]["pairs"][0]["win_rate"]["value"] == 0.5
    assert said["without_flagged"]["pairs"][0]["win_rate"]["value"] == 1.0
    careless = next(each for each in said["raters"] if each["rater"] == "careless")
    assert (careless["checks_failed"], careless["flags"]) == (2, ("failed_checks",))
    assert said["votes"] == 20  # checks are no votes on a comparison


def test_one_answer_throughout_and_haste_are_flagged(
    make_study: Callable[..., Study], make_votes: Callable[..., list[Vote]]
) -> None:
    study = make_study(samples=24)
    same = make_votes([("same", f"s{place}", "model0", "model1", "both_bad") for place in range(24)])
    fast = make_votes(
        [("fast", f"s{place}", "model0", "model1", "first" if place % 2 else "tie") for place in range(24)], seconds=0.4
    )
    flags = {each["rater"]: each["flags"] for each in results(study, same + fast, overlap=2)["raters"]}
    assert flags == {"same": ("one_answer",), "fast": ("hasty",)}


def test_agreement_counts_what_raters_share_and_tells_full_agreement(
    make_study: Callable[..., Study], make_votes: Callable[..., list[Vote]]
) -> None:
    study = make_study(samples=12)
    given = ["first", "second", "tie", "both_bad"] * 3
    rows = [(rater, f"s{place}", "model0", "model1", given[place]) for rater in "ab" for place in range(10)]
    agreement = results(study, make_votes(rows), overlap=2)["all"]["agreement"]
    assert (agreement["comparisons"], agreement["alpha"]["value"], agreement["percent"]) == (10, 1.0, 100.0)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_exported_votes_say_who_chose_what_on_which_side(
    ending: str, make_study: Callable[..., Study], make_votes: Callable[..., list[Vote]], tmp_path: Path
) -> None:
    study = make_study(attention_share=0.1)
    votes = make_votes([("anna", "s0", "model0", "model1", "first"), ("ben", "s1", "model0", "model1", "tie")])
    votes[0] = dataclasses.replace(votes[0], flipped=True, choice="right")
    votes.append(check("anna", "damaged|s3", "left"))
    path = tmp_path / f"votes{ending}"
    assert export_votes(study, votes, path) == 3
    if ending == ".csv":
        rows = list(csv.DictReader(path.open()))
    elif ending == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        rows = pl.read_parquet(path).to_dicts()
    assert [rows[0][name] for name in ("left", "right", "choice", "winner")] == ["model1", "model0", "right", "model0"]
    assert rows[1]["winner"] in (None, "")
    assert [rows[2][name] for name in ("kind", "winner", "check")] == ["damaged", "good", "passed"]


def test_a_spreadsheet_runs_nothing_from_an_export(
    make_study: Callable[..., Study], make_votes: Callable[..., list[Vote]], tmp_path: Path
) -> None:
    votes = make_votes([("=HYPERLINK(1)", "s0", "model0", "model1", "first")])
    export_votes(make_study(), votes, tmp_path / "votes.csv")
    assert "'=HYPERLINK(1)" in (tmp_path / "votes.csv").read_text()


def test_an_unknown_ending_is_refused_and_the_known_ones_are_named(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"\.xlsx") as refused:
        export_votes(make_study(), [], tmp_path / "votes.xlsx")
    assert ".parquet" in refused.value.remedy
