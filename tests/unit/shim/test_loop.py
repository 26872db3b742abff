"""The loop, its steps and the lock, with a clock of our own."""

import os
from typing import Any

import pytest

from shim.core.lock import Lock
from shim.core.loop import READ, SWEEP_MIN, Loop
from shim.core.steps import DeadlinePassed, Fired, Readable, Signal, Sleep
from shim.task.lifecycle import FACTS, PARKED, REQUESTS, TRANSITIONS, IllegalFact, Lifecycle


class Clocked:
    """A loop whose time the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loop = Loop(clock=lambda: self.now)
        self.ended: list[tuple[Any, BaseException | None]] = []

    def spawn(self, handler: Any) -> Any:
        return self.loop.spawn(handler, lambda value, error: self.ended.append((value, error)))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(5):
            self.loop.run_once(0)


@pytest.fixture
def clocked() -> Any:
    made = Clocked()
    yield made
    made.loop.close()


def test_handler_runs_through_its_steps_to_its_value(clocked: Clocked) -> None:
    signal = Signal()

    def handler() -> Any:
        yield Sleep(2.0)
        first = yield Fired(signal)
        second = yield Fired(signal)
        return first, second

    clocked.spawn(handler())
    clocked.pass_time(1.9)
    signal.fire("x")
    assert clocked.ended == []
    clocked.pass_time(0.2)
    assert clocked.ended == [(("x", "x"), None)]


def test_deadline_is_thrown_and_a_late_answer_ignored(clocked: Clocked) -> None:
    signal = Signal()

    def handler() -> Any:
        try:
            yield Fired(signal, deadline_s=1.0)
        except DeadlinePassed:
            yield Sleep(5.0)
            return "late"

    clocked.spawn(handler())
    clocked.pass_time(1.1)
    signal.fire()
    clocked.pass_time(0.1)
    assert clocked.ended == []
    clocked.pass_time(5.0)
    assert clocked.ended == [("late", None)]


def test_answer_in_time_takes_the_deadline_back(clocked: Clocked) -> None:
    signal = Signal()

    def handler() -> Any:
        yield Fired(signal, deadline_s=1.0)
        yield Sleep(10.0)
        return "fine"

    clocked.spawn(handler())
    signal.fire()
    clocked.pass_time(0.5)
    clocked.pass_time(5.0)
    clocked.pass_time(6.0)
    assert clocked.ended == [("fine", None)]


def test_readable_waits_for_the_pipe(clocked: Clocked) -> None:
    read_fd, write_fd = os.pipe()

    def handler() -> Any:
        yield Readable(read_fd)
        return os.read(read_fd, 10)

    clocked.spawn(handler())
    clocked.pass_time(0)
    assert clocked.ended == []
    os.write(write_fd, b"hi")
    clocked.pass_time(0)
    assert clocked.ended == [(b"hi", None)]
    os.close(read_fd)
    os.close(write_fd)


def test_failure_of_a_handler_is_its_spawners_to_judge(clocked: Clocked) -> None:
    def handler() -> Any:
        yield Sleep(0)
        raise ValueError("mine")

    clocked.spawn(handler())
    clocked.pass_time(0)
    ((value, error),) = clocked.ended
    assert value is None
    assert isinstance(error, ValueError)


def test_failure_nobody_asked_about_is_reported(clocked: Clocked) -> None:
    reported: list[BaseException] = []
    clocked.loop.on_error = reported.append

    def handler() -> Any:
        yield Sleep(0)
        raise ValueError("unheard")

    clocked.loop.spawn(handler())
    clocked.pass_time(0)
    assert [str(error) for error in reported] == ["unheard"]


@pytest.mark.parametrize("step", ["nonsense", None, Readable(-1)])
def test_step_that_cannot_be_arranged_is_thrown_back(clocked: Clocked, step: Any) -> None:
    def handler() -> Any:
        try:
            yield step
        except Exception as error:  # noqa: BLE001 - any
            return type(error).__name__

    clocked.spawn(handler())
    clocked.pass_time(0)
    assert clocked.ended in ([("TypeError", None)], [("ValueError", None)], [("OSError", None)])


def test_cancelled_handler_runs_its_finally(clocked: Clocked) -> None:
    closed = []

    def handler() -> Any:
        try:
            yield Sleep(100)
        finally:
            closed.append(True)

    task = clocked.spawn(handler())
    task.cancel()
    task.cancel()
    clocked.pass_time(200)
    assert closed == [True]
    assert isinstance(clocked.ended[0][1], GeneratorExit)


def test_callbacks_that_fail_do_not_stop_the_others(clocked: Clocked) -> None:
    reported: list[BaseException] = []
    clocked.loop.on_error = reported.append
    called = []

    def fail() -> None:
        raise ValueError

    clocked.loop.call_soon(fail)
    clocked.loop.call_soon(lambda: called.append("soon"))
    clocked.loop.call_later(1.0, fail)
    clocked.loop.call_later(1.0, lambda: called.append("later"))
    clocked.pass_time(2.0)
    assert called == ["soon", "later"]
    assert len(reported) == 2


def test_timers_fire_in_order_of_time_then_of_asking(clocked: Clocked) -> None:
    called: list[str] = []
    clocked.loop.call_later(2.0, lambda: called.append("c"))
    clocked.loop.call_later(1.0, lambda: called.append("a"))
    clocked.loop.call_later(1.0, lambda: called.append("b"))
    clocked.loop.call_later(1.5, lambda: called.append("never")).cancel()
    clocked.pass_time(3.0)
    assert called == ["a", "b", "c"]


def test_cancelled_timers_do_not_pile_up(clocked: Clocked) -> None:
    """Each call of runc leaves one that is two minutes off."""
    keep = clocked.loop.call_later(100.0, lambda: None)
    for _ in range(50 * SWEEP_MIN):
        clocked.loop.call_later(120.0, lambda: None).cancel()

    assert len(clocked.loop._timers) <= 2 * SWEEP_MIN
    assert keep in clocked.loop._timers


def test_timer_cancelled_after_it_fired_is_not_counted(clocked: Clocked) -> None:
    timers = [clocked.loop.call_later(1.0, lambda: None) for _ in range(10)]
    clocked.pass_time(2.0)
    for timer in timers:
        timer.cancel()

    assert clocked.loop._cancelled == 0


# --- signals and the lock


def test_thousands_may_wait_for_a_signal_and_leave_it() -> None:
    signal, told = Signal(), []
    cancels = [signal.subscribe(told.append) for _ in range(10_000)]
    for cancel in cancels[1:]:
        cancel()
        cancel()
    signal.fire("once")
    signal.subscribe(told.append)

    assert told == ["once", "once"]


def test_lock_is_had_in_the_order_of_asking(clocked: Clocked) -> None:
    lock, order = Lock(), []

    def handler(name: str) -> Any:
        yield from lock.acquire()
        try:
            order.append(name)
            yield Sleep(1.0)
        finally:
            lock.release()

    for name in "abc":
        clocked.spawn(handler(name))
    clocked.pass_time(0)
    assert order == ["a"]
    for _ in range(3):
        clocked.pass_time(1.0)
    assert order == ["a", "b", "c"]
    clocked.spawn(handler("d"))
    assert order[-1] == "d"


@pytest.mark.parametrize("is_handed_over", [False, True])
def test_handler_that_gives_up_in_the_queue_does_not_keep_the_lock(clocked: Clocked, is_handed_over: bool) -> None:
    lock, order = Lock(), []

    def holder() -> Any:
        yield from lock.acquire()
        yield Sleep(1.0)
        lock.release()

    def waiter(name: str) -> Any:
        yield from lock.acquire()
        order.append(name)
        lock.release()

    clocked.spawn(holder())
    quitter = clocked.spawn(waiter("quitter"))
    clocked.spawn(waiter("next"))
    if is_handed_over:
        clocked.now = 1.0
        clocked.loop._timers[0].callback()  # the holder releases; the quitter is resumed only in the next round
    quitter.cancel()
    clocked.pass_time(1.0)
    assert order == ["next"]


# --- the table


def test_table_is_total_and_requests_name_its_states() -> None:
    assert {fact for row in TRANSITIONS.values() for fact in row} == set(FACTS)
    assert {target for row in TRANSITIONS.values() for target in row.values()} <= set(TRANSITIONS) | {PARKED}
    assert {state for states in REQUESTS.values() for state in states} <= set(TRANSITIONS)


@pytest.mark.parametrize("state", TRANSITIONS)
@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_moves_or_is_refused(state: str, fact: str) -> None:
    life = Lifecycle(state)
    if fact in TRANSITIONS[state]:
        target = TRANSITIONS[state][fact]
        assert life.record(fact) == (state if target == PARKED else target)
        assert life.parked is (target == PARKED)
    else:
        with pytest.raises(IllegalFact, match=fact):
            life.record(fact)
        assert life.state == state


def test_a_timer_of_a_year_can_be_waited_for() -> None:
    """epoll_wait(2) takes at most 24 days; restart policies may ask for a pause of a year."""
    loop = Loop()
    loop.call_later(366 * 86400.0, lambda: None)
    read_fd, write_fd = os.pipe()
    came: list[int] = []
    loop.register(read_fd, READ, came.append)
    os.write(write_fd, b"x")
    loop.run_once()
    assert came
    loop.close()
    os.close(read_fd)
    os.close(write_fd)
