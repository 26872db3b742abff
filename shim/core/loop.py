"""One epoll, timers, and handlers driven by the steps they yield. Single-threaded; nothing here blocks but `run`."""

import heapq
import select
import time

from shim.core.steps import DeadlinePassed, Exited, Fired, Readable, Sleep, Spawn, Writable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.core.pulse import Pulse
    from shim.core.reaper import Reaper
    from shim.core.steps import Handler

READ = select.EPOLLIN
WRITE = select.EPOLLOUT


# Cancelled timers stay in the heap until due; more than this many, and more than half of all, are swept out.
SWEEP_MIN = 64
# In one turn; what is left over comes in the next. Room for as many as may be open, the default, is 12 KB each turn.
READY_MAX = 32
# The longest poll: epoll_wait(2) counts milliseconds in an int, which ends after 24 days.
WAIT_MAX_S = 86400.0


class Timer:
    """A call to be made later; `cancel` takes it back."""

    __slots__ = ("at", "callback", "loop", "order")

    def __init__(self, at: float, order: int, callback: "Callable[[], None]", loop: "Loop") -> None:
        self.at = at
        self.order = order
        self.callback: Callable[[], None] | None = callback
        self.loop = loop

    def cancel(self) -> None:
        """Take it back; after it was called or cancelled, nothing."""
        if self.callback is not None:
            self.callback = None
            self.loop.timer_cancelled()

    def __lt__(self, other: "Timer") -> bool:
        return (self.at, self.order) < (other.at, other.order)


class Task:
    """One handler under way. `done` holds (value, error) once it ended."""

    __slots__ = ("_cancel_step", "done", "handler", "loop", "on_done")

    def __init__(self, loop: "Loop", handler: "Handler", on_done: "Callable[[Any, BaseException | None], None] | None"):
        self.loop = loop
        self.handler = handler
        self.on_done = on_done
        self.done: tuple[Any, BaseException | None] | None = None
        self._cancel_step: Callable[[], None] | None = None

    def cancel(self) -> None:
        """End the handler where it waits: GeneratorExit runs its `finally` parts, which may not yield."""
        if self.done is not None:
            return
        if self._cancel_step is not None:
            self._cancel_step()
            self._cancel_step = None
        self.handler.close()
        self._finish(None, GeneratorExit())

    def resume(self, value: "Any" = None, error: "BaseException | None" = None) -> None:
        """Run the handler to its next step, and arrange for that one."""
        if self.done is not None:
            return
        self._cancel_step = None
        try:
            step = self.handler.throw(error) if error is not None else self.handler.send(value)
        except StopIteration as stop:
            self._finish(stop.value, None)
            return
        except Exception as failure:  # noqa: BLE001 - whoever spawned the handler decides what its failure means
            self._finish(None, failure)
            return
        try:
            self._cancel_step = self.loop.arrange(step, self)
        except Exception as failure:  # noqa: BLE001 - a step that cannot be arranged is the handler's to know
            self._cancel_step = None
            told = failure
            self.loop.call_soon(lambda: self.resume(error=told))

    def _finish(self, value: "Any", error: "BaseException | None") -> None:
        self.done = (value, error)
        self.loop.under_way.discard(self)
        if self.on_done is not None:
            self.on_done(value, error)


class Loop:
    """Owns the epoll fd and the timers; borrows every registered fd. `reaper` answers Spawn and Exited."""

    def __init__(self, clock: "Callable[[], float]" = time.monotonic) -> None:
        self.clock = clock
        self.reaper: Reaper | None = None
        self.pulse: Pulse | None = None
        self.on_error: Callable[[BaseException], None] = _reraise
        self.under_way: set[Task] = set()  # handlers that whoever follows this process could not begin again
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._order = 0
        self._cancelled = 0
        self._soon: list[Callable[[], None]] = []
        self._stopping = False

    # --- fds

    def register(self, fd: int, mask: int, callback: "Callable[[int], None]") -> None:
        """Call ``callback(ready mask)`` whenever the fd is ready (level-triggered). One registration per fd."""
        self._epoll.register(fd, mask)
        self._callbacks[fd] = callback

    def modify(self, fd: int, mask: int) -> None:
        """Change what is waited for; 0 leaves only errors and hang-up."""
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Forget the fd; must come before its close. Unknown fds are ignored."""
        if self._callbacks.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:  # closed already: epoll forgot it by itself
                pass

    # --- time

    def call_later(self, delay_s: float, callback: "Callable[[], None]") -> Timer:
        self._order += 1
        timer = Timer(self.clock() + delay_s, self._order, callback, self)
        heapq.heappush(self._timers, timer)
        return timer

    def timer_cancelled(self) -> None:
        """Count a cancelled timer, and sweep when they outnumber the live ones: every runc call leaves one behind."""
        self._cancelled += 1
        if self._cancelled > SWEEP_MIN and self._cancelled * 2 > len(self._timers):
            self._timers = [timer for timer in self._timers if timer.callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def call_soon(self, callback: "Callable[[], None]") -> None:
        """Call it in this round, after the callbacks now under way."""
        self._soon.append(callback)

    # --- handlers

    @property
    def has_soon(self) -> bool:
        """Whether callbacks of this round are still to be called."""
        return bool(self._soon)

    def spawn(
        self,
        handler: "Handler",
        on_done: "Callable[[Any, BaseException | None], None] | None" = None,
        *,
        is_watch: bool = False,
    ) -> Task:
        """Start a handler now; it runs to its first step before this returns.

        ``is_watch``: it only waits for something, and whoever follows this process waits anew.
        """
        task = Task(self, handler, on_done if on_done is not None else self._report)
        if not is_watch:
            self.under_way.add(task)
        task.resume()
        return task

    def _report(self, _value: "Any", error: "BaseException | None") -> None:
        if error is not None and not isinstance(error, GeneratorExit):
            self.on_error(error)

    def arrange(self, step: "Any", task: Task) -> "Callable[[], None]":
        """Have the task resumed when its step is answered. Returns what forgets the step."""
        if isinstance(step, Fired):
            return self._with_deadline(step.deadline_s, task, step.signal.subscribe)
        if isinstance(step, Exited):
            assert self.reaper is not None, "a loop without a reaper cannot wait for children"
            return self._with_deadline(step.deadline_s, task, self.reaper.exit_signal(step.pid).subscribe)
        if isinstance(step, Spawn):
            assert self.reaper is not None, "a loop without a reaper cannot start children"
            try:
                pid = self.reaper.start(step)
            except OSError as error:
                failure = error
                self.call_soon(lambda: task.resume(error=failure))
            else:
                self.call_soon(lambda: task.resume(pid))
            return _nothing
        if isinstance(step, Sleep):
            return self.call_later(step.seconds, task.resume).cancel
        if isinstance(step, Readable):
            return self._when_ready(step.fd, READ, step.deadline_s, task)
        if isinstance(step, Writable):
            return self._when_ready(step.fd, WRITE, step.deadline_s, task)
        raise TypeError(f"a handler yielded {step!r}, which is no step")

    def _when_ready(self, fd: int, mask: int, deadline_s: "float | None", task: Task) -> "Callable[[], None]":
        def subscribe(wake: "Callable[[Any], None]") -> "Callable[[], None]":
            def ready(_mask: int) -> None:
                self.unregister(fd)
                wake(None)

            self.register(fd, mask, ready)
            return lambda: self.unregister(fd)

        return self._with_deadline(deadline_s, task, subscribe)

    def _with_deadline(
        self,
        deadline_s: "float | None",
        task: Task,
        subscribe: "Callable[[Callable[[Any], None]], Callable[[], None]]",
    ) -> "Callable[[], None]":
        """Resume the task by whichever comes first, the subscription or the deadline; never twice."""
        settled = False
        timer: Timer | None = None

        def answer(value: "Any") -> None:
            nonlocal settled
            if settled:
                return
            settled = True
            if timer is not None:
                timer.cancel()
            # Never resume inside the subscriber's own call: the generator may still be running.
            self.call_soon(lambda: task.resume(value))

        cancel_subscription = subscribe(answer)

        def expire() -> None:
            nonlocal settled
            if settled:
                return
            settled = True
            cancel_subscription()
            task.resume(error=DeadlinePassed())

        if deadline_s is not None and not settled:
            timer = self.call_later(deadline_s, expire)

        def forget() -> None:
            nonlocal settled
            settled = True
            cancel_subscription()
            if timer is not None:
                timer.cancel()

        return forget

    # --- running

    def stop(self) -> None:
        """Let `run` return after this round."""
        self._stopping = True

    def run(self) -> None:
        """Serve until `stop`. Blocks."""
        self._stopping = False
        while not self._stopping:
            self.run_once()

    def run_once(self, timeout_s: "float | None" = None) -> None:
        """One round: wait at most ``timeout_s``, then call back what is ready and due."""
        self._run_soon()
        if self._stopping:
            return
        wait_s = self._wait_s(timeout_s)
        pulse = self.pulse
        if pulse is not None:
            pulse.rest()
        ready = self._epoll.poll(wait_s, READY_MAX)
        if pulse is not None:
            pulse.work()
        for fd, mask in ready:
            callback = self._callbacks.get(fd)
            if callback is not None:  # an earlier callback of this round may have unregistered it
                self._guard(lambda callback=callback, mask=mask: callback(mask))  # type: ignore[misc]
        now = self.clock()
        while self._timers and self._timers[0].at <= now:
            timer = heapq.heappop(self._timers)
            due, timer.callback = timer.callback, None
            if due is None:
                self._cancelled -= 1
            else:
                self._guard(due)
        self._run_soon()

    def _wait_s(self, timeout_s: "float | None") -> float:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
            self._cancelled -= 1
        wait_s = -1.0 if timeout_s is None else timeout_s
        if self._soon:
            return 0.0
        if self._timers:
            due_s = min(max(0.0, self._timers[0].at - self.clock()), WAIT_MAX_S)
            wait_s = due_s if wait_s < 0 else min(wait_s, due_s)
        return wait_s

    def _run_soon(self) -> None:
        while self._soon:
            batch, self._soon = self._soon, []
            for callback in batch:
                self._guard(callback)

    def _guard(self, callback: "Callable[[], Any]") -> None:
        """One callback's failure is reported and is nobody else's."""
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - the loop outlives any callback
            self.on_error(error)

    def close(self) -> None:
        self._epoll.close()
        self._callbacks.clear()


def _reraise(error: BaseException) -> None:
    raise error


def _nothing() -> None:
    """A step that cannot be forgotten: its answer is already on its way."""
