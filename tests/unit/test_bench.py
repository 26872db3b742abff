"""The arithmetic behind the measurements, and a table of promises that can be judged."""

import importlib

import pytest

from bench.ledger import Ledger
from bench.measure import Promise, in_turn, percentile, promises, ratio
from bench.run import ALONE, SCRIPTS, verdict_of


def test_a_ratio_is_median_over_median_within_its_range() -> None:
    found = ratio([10, 11, 12, 10, 11], [20, 22, 21, 20, 22])

    assert found.value == pytest.approx(11 / 21)
    assert found.low <= found.value <= found.high


def test_equal_sides_have_a_range_that_holds_one() -> None:
    found = ratio([5, 6, 7, 5, 6, 7], [6, 5, 7, 7, 6, 5])

    assert found.low <= 1.0 <= found.high


def test_in_turn_gives_each_side_one_figure_per_round() -> None:
    assert in_turn(3, lambda n: n, lambda n: n * 10) == [[0, 1, 2], [0, 10, 20]]


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_a_percentile_is_one_of_the_figures(percent: float, expected: int) -> None:
    assert percentile(range(1, 101), percent) == expected


def test_a_ledger_tells_lost_from_doubled() -> None:
    ledger = Ledger()
    account = ledger.account("exits", ["a", "b", "c"], ["a", "c", "c"])

    assert list(account.lost.elements()) == ["b"]
    assert list(account.doubled.elements()) == ["c"]
    assert not ledger.is_balanced()
    assert ledger.differences() == "lost in exits: b (1)\ndoubled in exits: c (1)"


def test_a_balanced_ledger_has_no_differences() -> None:
    ledger = Ledger()
    ledger.account("exits", ["a", "b"], ["b", "a"])

    assert ledger.is_balanced()
    assert ledger.differences() == ""


@pytest.mark.parametrize(
    ("value", "pending", "expected"),
    [(0.9, "", "kept"), (1.1, "", "BROKEN"), (1.1, "the keeper", "pending"), (1.0, "the keeper", "kept")],
)
def test_the_verdict_on_a_promise(value: float, pending: str, expected: str) -> None:
    promise = Promise("start", "start_ratio", at_most=1.0, at_least=None, says="", pending=pending)

    assert verdict_of(promise, value) == expected


def test_every_promise_has_one_bound_and_a_script_that_can_be_run() -> None:
    table = promises()

    assert {promise.script for promise in table} <= {*SCRIPTS, *ALONE}
    assert [promise for promise in table if (promise.at_most is None) == (promise.at_least is None)] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_at_which_size_it_measures(name: str) -> None:
    script = importlib.import_module(f"bench.{name}")

    assert script.SIZES
    assert all(size > 0 for size in script.SIZES.values())
