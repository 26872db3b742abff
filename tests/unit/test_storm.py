"""What a storm decides by its seed, and how it reads what containers left."""

import itertools
import json
from pathlib import Path

import pytest

from bench.storm.plans import DAEMON, KEEPER, KINDS, SHIM, life_of, strokes
from bench.storm.tally import Tally
from bench.storm.truth import Log
from bench.storm.verdicts import is_in_order


def test_the_same_seed_decides_the_same() -> None:
    def decided(seed: int) -> list[object]:
        lives = [life_of(seed, slot, number, 1.0) for slot in range(3) for number in range(3)]
        return [*lives, *itertools.islice(strokes(seed, frozenset(KINDS), 5.0), 100)]

    assert decided(7) == decided(7)
    assert decided(7) != decided(8)


@pytest.mark.parametrize("kinds", [{DAEMON}, {SHIM}, {KEEPER, SHIM}, set(KINDS)])
def test_strokes_are_at_what_was_asked_for_and_at_all_of_it(kinds: set[str]) -> None:
    hit = {kind for each in itertools.islice(strokes(1, frozenset(kinds), 5.0), 500) for kind in each.kinds}

    assert hit == kinds


def test_a_rotated_log_is_read_from_its_oldest_file_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for suffix, lines in (("", ["c 3\n", "c "]), (".1", ["c 2\n"]), (".2", ["c 0\n", "c 1\n"])):
        text = "".join(json.dumps({"log": line}) + "\n" for line in lines)
        (tmp_path / f"log{suffix}").write_text(text, encoding="ascii")

    log = Log(str(path), "c", is_json=True)

    assert log.numbers == [0, 1, 2, 3]
    assert log.strange == ["unfinished: 'c '"]


def test_the_order_of_events_is_looked_at() -> None:
    told = [("/tasks/create", ""), ("/tasks/start", ""), ("/tasks/exec-added", "x"), ("/tasks/exec-started", "x")]
    ends = [("/tasks/exit", "x"), ("/tasks/exit", ""), ("/tasks/delete", "")]

    assert is_in_order(told + ends)
    assert not is_in_order([*told, ends[1], ends[0], ends[2]])
    assert not is_in_order([told[1], told[0], *told[2:], *ends])


def test_an_unknown_status_without_a_reason_spoils_the_tally() -> None:
    tally = Tally()
    tally.add("exec_statuses_unknown")
    assert not tally.is_clean

    tally.unknown.append("x: nobody lived who could know")
    assert tally.is_clean
