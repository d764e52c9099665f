"""Who sees what: even over comparisons, pairs, raters and sides, with attention checks in between."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from kiwi.benchmark.preference.assigning import Aim, flipped, next_item, progress
from kiwi.benchmark.preference.signing import Signer
from kiwi.benchmark.preference.study import Study


class Table:
    """Raters at work, without a database: what each was shown, and on which side."""

    def __init__(self, study: Study, aim: Aim, signer: Signer) -> None:
        self.study, self.aim, self.signer = study, aim, signer
        self.mine: dict[str, list[str]] = defaultdict(list)
        self.taken: Counter[str] = Counter()
        self.sides: dict[str, list[bool]] = defaultdict(list)

    def show(self, rater: str, beyond: bool = False) -> bool:
        item = next_item(self.study, self.aim, self.signer, rater, self.mine[rater], self.taken, beyond)
        if item is None:
            return False
        self.sides[item.item_id].append(flipped(self.study, self.signer, item, self.taken[item.item_id]))
        self.mine[rater].append(item.item_id)
        self.taken[item.item_id] += 1
        return True

    def comparisons(self, rater: str) -> list[str]:
        return [item for item in self.mine[rater] if self.study.items[item].kind == "pair"]


def work(table: Table, raters: list[str], seed: int = 0) -> None:
    """All raters until each has done their share, in an order by chance."""
    draw, busy = random.Random(seed), list(raters)
    while busy:
        rater = draw.choice(busy)
        if not table.show(rater):
            busy.remove(rater)


@pytest.mark.parametrize(("raters", "overlap", "sets"), [(1, 1, 2), (2, 2, 2), (3, 2, 3), (5, 3, 3), (4, 1, 2)])
def test_every_comparison_is_seen_by_as_many_raters_as_asked(
    raters: int, overlap: int, sets: int, make_study: Callable[..., Study], signer: Signer
) -> None:
    study = make_study(samples=20, sets=sets)
    table = Table(study, Aim(raters, overlap), signer)
    names = [f"r{number}" for number in range(raters)]
    work(table, names)
    for name in names:  # what uneven orders left over, anyone may take
        while table.show(name, beyond=True):
            pass
    assert {table.taken[item.item_id] for item in study.comparisons} == {overlap}


def test_raters_get_equal_shares_and_nobody_sees_a_comparison_twice(
    make_study: Callable[..., Study], signer: Signer
) -> None:
    table = Table(make_study(samples=30), Aim(5, 2), signer)
    work(table, list("abcde"))
    assert {len(table.mine[rater]) for rater in "abcde"} <= {11, 12}
    assert all(len(set(mine)) == len(mine) for mine in table.mine.values())


def test_each_rater_sees_all_pairs_of_sets_equally_often(make_study: Callable[..., Study], signer: Signer) -> None:
    table = Table(make_study(samples=30, sets=3), Aim(5, 2), signer)
    work(table, list("abcde"))
    for rater in "abcde":
        seen = Counter(table.study.items[item].sets for item in table.mine[rater])
        assert max(seen.values()) - min(seen.values()) <= 2


def test_sides_are_by_chance_and_exchanged_between_raters(make_study: Callable[..., Study], signer: Signer) -> None:
    table = Table(make_study(samples=200), Aim(2, 2), signer)
    work(table, ["a", "b"])
    assert all(sorted(sides) == [False, True] for sides in table.sides.values())
    first = [sides[0] for sides in table.sides.values()]
    assert 70 < sum(first) < 130


def test_another_secret_gives_other_sides_and_another_order(make_study: Callable[..., Study], signer: Signer) -> None:
    study = make_study(samples=60)
    one, other = (Table(study, Aim(1, 1), each) for each in (signer, Signer(b"x" * 32, signer.token)))
    work(one, ["a"])
    work(other, ["a"])
    assert one.mine["a"] != other.mine["a"]
    assert one.sides != other.sides


def test_attention_checks_come_at_their_share_in_both_kinds_and_never_twice(
    make_study: Callable[..., Study], signer: Signer
) -> None:
    table = Table(make_study(samples=60, attention_share=0.1), Aim(2, 2), signer)
    work(table, ["a", "b"])
    for rater in "ab":
        checks = [item for item in table.mine[rater] if table.study.items[item].kind != "pair"]
        assert len(table.comparisons(rater)) == 60
        assert 5 <= len(checks) <= 7
        assert len(set(checks)) == len(checks)
        assert len({table.study.items[item].kind for item in checks}) == 2
    places = {rater: [table.study.items[item].kind for item in table.mine[rater]] for rater in "ab"}
    assert places["a"] != places["b"]


def test_without_checks_a_rater_sees_comparisons_alone(make_study: Callable[..., Study], signer: Signer) -> None:
    table = Table(make_study(samples=30, attention_share=0.0), Aim(1, 1), signer)
    work(table, ["a"])
    assert len(table.mine["a"]) == 30


def test_progress_ends_at_its_total(make_study: Callable[..., Study], signer: Signer) -> None:
    study, aim = make_study(samples=25, attention_share=0.2), Aim(2, 2)
    table = Table(study, aim, signer)
    shown = []
    while table.show("a"):
        shown.append(progress(study, aim, signer, "a", table.mine["a"], len(table.mine["a"]), table.taken))
    assert shown[-1].done == shown[-1].total
    assert shown[-1].open_for_more == 0


@pytest.mark.parametrize(("samples", "attention"), [(9, 0.1), (25, 0.2), (4, 0.5), (60, 0.1), (3, 0.1)])
def test_the_total_stays_as_it_is_so_that_it_gives_no_check_away(
    samples: int, attention: float, make_study: Callable[..., Study], signer: Signer
) -> None:
    study, aim = make_study(samples=samples, attention_share=attention), Aim(2, 2)
    for rater in ("a", "b", "c", "d"):
        table = Table(study, aim, signer)
        totals = [progress(study, aim, signer, rater, [], 0, table.taken).total]
        while table.show(rater):
            totals.append(progress(study, aim, signer, rater, table.mine[rater], 0, table.taken).total)
        assert set(totals) == {len(table.mine[rater])}


def test_the_share_of_a_rater_who_left_can_be_taken_over(make_study: Callable[..., Study], signer: Signer) -> None:
    study, aim = make_study(samples=20), Aim(2, 1)
    table = Table(study, aim, signer)
    work(table, ["a"])
    assert len(table.mine["a"]) == 10
    assert progress(study, aim, signer, "a", table.mine["a"], 10, table.taken).open_for_more == 10
    while table.show("a", beyond=True):
        pass
    assert len(table.mine["a"]) == 20
