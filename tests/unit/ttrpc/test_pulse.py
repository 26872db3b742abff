"""The page that says whether a shim is at work: written by the shim, read by anybody who may."""

import os
import time
from typing import Any

import pytest

from shim.core import kernel
from shim.core.loop import Loop
from shim.core.pulse import Pulse
from ttrpc.api import pulse

ME = os.getpid()


@pytest.fixture
def made(tmp_path: Any) -> Any:
    found = Pulse(str(tmp_path))
    yield found
    found.close()


def told(tmp_path: Any) -> "tuple[int, int] | None":
    return pulse.read(str(tmp_path), ME, kernel.start_ticks(ME))


def test_it_tells_work_from_rest_and_counts_the_turns(made: Pulse, tmp_path: Any) -> None:
    made.rest()
    assert told(tmp_path) == (0, 0)
    before = time.monotonic_ns()
    made.work()
    busy_since_ns, turns = told(tmp_path) or (0, 0)
    assert before <= busy_since_ns <= time.monotonic_ns()
    assert turns == 1


def test_the_loop_beats(made: Pulse, tmp_path: Any) -> None:
    loop, seen = Loop(), []
    loop.pulse = made
    for _ in range(2):
        loop.call_later(0.0, lambda: seen.append(told(tmp_path)))
        loop.run_once(0.0)
    loop.close()

    assert [turns for _, turns in seen] == [1, 2]
    assert all(busy_since_ns for busy_since_ns, _ in seen)


def test_the_page_of_another_process_is_not_believed(made: Pulse, tmp_path: Any) -> None:
    ticks = kernel.start_ticks(ME)
    assert pulse.read(str(tmp_path), ME + 1, ticks) is None
    assert pulse.read(str(tmp_path), ME, ticks + 1) is None


@pytest.mark.parametrize("data", [b"", b"x" * 47, b"\0" * 48, b"x" * 4096])
def test_what_is_no_page_is_no_pulse(data: bytes) -> None:
    assert pulse.unpack(data, ME, 1) is None


def test_a_later_version_is_not_guessed_at(made: Pulse, tmp_path: Any) -> None:
    made._words[pulse.WORD_VERSION] = 2
    assert told(tmp_path) is None


def test_a_link_to_anything_else_is_not_opened(tmp_path: Any) -> None:
    """A FIFO would make the reader wait, a device might do anything."""
    os.mkfifo(tmp_path / "fifo")
    for target in ("fifo", "/dev/null", "nowhere"):
        os.symlink(target, tmp_path / pulse.NAME)
        assert told(tmp_path) is None
        os.unlink(tmp_path / pulse.NAME)


def test_the_link_goes_with_it_but_not_a_successors(tmp_path: Any) -> None:
    first, second = Pulse(str(tmp_path)), Pulse(str(tmp_path))
    first.close()
    assert told(tmp_path) is not None
    second.close()
    assert os.listdir(tmp_path) == []


def test_a_look_at_ourselves(made: Pulse, tmp_path: Any) -> None:
    made.work()
    found = pulse.look(str(tmp_path), ME, time.monotonic_ns())

    assert (found.pid, found.state, found.turns) == (ME, "R", 1)
    assert found.cpu_ns > 0
    assert pulse.look(str(tmp_path), 2**22 + 1, 1).state == ""


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        ("some avg10=9.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=12.50 avg60=0.00 avg300=0.00 total=1\n", 12.5),
        ("some avg10=9.00 avg60=0.00 avg300=0.00 total=1\n", 0.0),
        ("full avg10=x avg60\n", 0.0),
        ("", 0.0),
    ],
)
def test_memory_stall(text: str, percent: float) -> None:
    assert pulse.memory_stall_percent(text) == percent


def test_the_last_stack_in_a_log_is_found() -> None:
    text = """\
Current thread 0x01 (most recent call first):
  File "old.py", line 1 in old
time=… level=info msg="between" id=c
Current thread 0x02 (most recent call first):
  File "a.py", line 3 in inner
  File "b.py", line 4 in outer
time=… level=info msg="after" id=c
"""

    assert pulse.stack_in(text).splitlines() == text.splitlines()[3:6]
    assert pulse.stack_in("") == ""
