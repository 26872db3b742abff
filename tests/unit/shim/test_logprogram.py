"""How long a log program is waited for, and how often it is started; the test plays the program, the clock is ours."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from shim.core.pipes import make_fifo
from shim.streams.jsonlines import STDERR, STDOUT
from shim.streams.logprogram import LIFE_S, LIVES_MAX, QUIET_S, READ_ON_S, READY_S, TERM_S, LogProgram
from shim.streams.targets import parse
from tests.support.stage import Asked, Stage
from ttrpc.errors import StatusError

LABELS = {"CONTAINER_ID": "c1", "CONTAINER_NAMESPACE": "ns"}


class Play:
    """Owns a program that is made of nothing, and the process's ends of its FIFOs."""

    def __init__(self, stage: Stage, folder: str) -> None:
        self.stage = stage
        self.program = LogProgram(stage.loop, parse("stdout", "binary:///log?a=b"), LABELS, stage.log.warning)
        self.steps: list[Any] = []
        self.ready: list[int] = []  # the program's fd 5, of each of its lives
        self.inputs: list[int] = []  # the program's fd 3, of each of its lives
        self.ends = []
        start = stage.reaper.start

        def started(step: Any) -> int:
            self.steps.append(step)
            self.inputs.append(os.dup(step.more[0]))
            self.ready.append(os.dup(step.more[2]))
            return start(step)

        stage.reaper.start = started  # type: ignore[method-assign]
        for stream in (STDOUT, STDERR):
            path = os.path.join(folder, stream)
            make_fifo(path)
            self.ends.append(self.program.pipe(stream, path))

    def says_ready(self) -> None:
        os.close(self.ready.pop())
        self.stage.turn()

    def begin(self) -> Asked:
        asked = self.stage.ask(self.program.prepare())
        self.says_ready()
        return asked

    def pid(self) -> int:
        return max(self.stage.reaper.started)

    def dies(self, status: int = 9) -> None:
        self.stage.ends(self.pid(), status)

    def process_ends(self) -> None:
        while self.ends:
            os.close(self.ends.pop())

    def later(self, seconds: float) -> None:
        """Time passes, in the small steps in which the program is looked at."""
        end = self.stage.now + seconds
        while self.stage.now < end:
            self.stage.now = min(end, self.stage.now + 0.01)
            for _ in range(3):
                self.stage.loop.run_once(0)

    def close(self) -> None:
        self.process_ends()
        for fd in (*self.ready, *self.inputs):
            os.close(fd)
        self.program.close()
        self.stage.turn()
        for pid, signal in self.stage.reaper.signals.items():
            if not signal.fired:
                self.stage.ends(pid)
        self.later(QUIET_S + 0.1)


@pytest.fixture
def play(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    stage = Stage(str(tmp_path), monkeypatch)
    made = Play(stage, str(tmp_path))
    yield made
    made.close()
    stage.close()


def test_it_is_started_with_its_arguments_and_three_more_fds(play: Play) -> None:
    asked = play.begin()

    assert asked.result() is None
    (step,) = play.steps
    assert (step.argv, step.env, step.stdio) == (("/log", "a", "b"), LABELS, (None, None, None))
    assert len(step.more) == 3
    assert min(step.more) > 5


def test_one_that_is_never_ready_is_not_waited_for_for_ever(play: Play) -> None:
    asked = play.stage.ask(play.program.prepare())
    play.stage.later(READY_S - 0.1)
    assert not asked.is_done
    play.stage.later(0.2)

    with pytest.raises(StatusError, match="not ready within 30 s"):
        asked.result()


def test_one_that_ended_with_its_input_is_not_waited_for(play: Play) -> None:
    play.begin()
    play.process_ends()
    play.dies(0)

    assert play.stage.ask(play.program.end()).result() is None
    assert len(play.steps) == 1
    assert play.stage.signalled == []


def test_one_that_has_read_all_is_asked_to_end_and_then_made_to(play: Play) -> None:
    play.begin()
    play.process_ends()
    asked = play.stage.ask(play.program.end())
    play.later(QUIET_S - 0.05)
    assert play.stage.signalled == []
    play.later(0.1)
    assert play.stage.signalled == [(play.pid(), 15)]
    play.later(TERM_S)
    assert play.stage.signalled == [(play.pid(), 15), (play.pid(), 9)]
    assert not asked.is_done
    play.dies()

    assert asked.is_done


def test_one_that_still_reads_is_left_alone_within_reason(play: Play) -> None:
    play.begin()
    os.write(play.ends[0], b"not read yet")
    play.process_ends()
    play.stage.ask(play.program.end())
    play.later(READ_ON_S - 0.1)
    assert play.stage.signalled == []
    play.later(0.2)

    assert play.stage.signalled == [(play.pid(), 15)]


def test_one_that_dies_is_started_again_later_and_later_and_then_no_more(play: Play) -> None:
    play.begin()
    for lives in range(1, LIVES_MAX):
        assert len(play.steps) == lives
        play.dies()
        play.later(3.0)
    play.dies()
    play.later(60.0)

    assert len(play.steps) == LIVES_MAX
    assert play.stage.log.lines[-1].endswith("was killed by signal 9 again and again: output is dropped")
    os.write(play.ends[0], b"lost")
    play.later(0.1)
    assert play.program.dropped_bytes == 4


def test_one_that_lived_for_a_while_has_all_its_lives_before_it(play: Play) -> None:
    play.begin()
    for _ in range(3 * LIVES_MAX):
        play.later(LIFE_S + 1.0)
        play.dies()
        play.later(1.0)

    assert len(play.steps) == 3 * LIVES_MAX + 1


def test_one_that_dies_over_the_last_words_is_started_for_them_at_once(play: Play) -> None:
    play.begin()
    os.write(play.ends[0], b"last words")
    play.process_ends()
    play.dies()
    asked = play.stage.ask(play.program.end())
    play.later(0.05)
    assert len(play.steps) == 2
    assert os.read(play.inputs[1], 100) == b"last words"
    play.dies(0)
    play.later(0.05)

    assert asked.is_done
    assert len(play.steps) == 2
