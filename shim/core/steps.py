"""What a handler may wait for, as values: it yields one of these, and the loop resumes it with the answer.

Handlers are generators so that a test plays the kernel: it inspects the yielded step and sends back what it likes.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from typing import Any, TypeAlias

    Handler: TypeAlias = "Generator[Any, Any, Any]"


class DeadlinePassed(Exception):
    """Thrown into a handler whose step carried a deadline that passed first. What was waited for goes on."""


class Spawn:
    """Start a program; answers with its pid. The loop is its parent and the reaper keeps its status for `Exited`.

    ``stdio`` are the three fds the child gets as 0, 1, 2; None is /dev/null. ``more`` is what it gets as 3, 4, …; their
    own numbers must be above those. Every other fd of ours is close-on-exec. ``group`` puts the child into a process
    group of its own, so that one kill ends it with its helpers.
    """

    __slots__ = ("argv", "env", "group", "more", "stdio")

    def __init__(
        self,
        argv: "Sequence[str]",
        *,
        stdio: "tuple[int | None, int | None, int | None]" = (None, None, None),
        env: "dict[str, str] | None" = None,
        group: bool = True,
        more: "tuple[int, ...]" = (),
    ) -> None:
        self.argv = tuple(argv)
        self.stdio = stdio
        self.env = env
        self.group = group
        self.more = more


class Exited:
    """Wait for a child of ours; answers with its raw wait status (as os.waitstatus_to_exitcode takes it)."""

    __slots__ = ("deadline_s", "pid")

    def __init__(self, pid: int, *, deadline_s: "float | None" = None) -> None:
        self.pid = pid
        self.deadline_s = deadline_s


class Readable:
    """Wait until a read of this fd would not block (end of file counts)."""

    __slots__ = ("deadline_s", "fd")

    def __init__(self, fd: int, *, deadline_s: "float | None" = None) -> None:
        self.fd = fd
        self.deadline_s = deadline_s


class Writable:
    """Wait until a write to this fd would not block (a broken pipe counts)."""

    __slots__ = ("deadline_s", "fd")

    def __init__(self, fd: int, *, deadline_s: "float | None" = None) -> None:
        self.fd = fd
        self.deadline_s = deadline_s


class Sleep:
    """Wait this many seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Fired:
    """Wait until a `Signal` has fired; answers with its value, at once when it fired before."""

    __slots__ = ("deadline_s", "signal")

    def __init__(self, signal: "Signal", *, deadline_s: "float | None" = None) -> None:
        self.signal = signal
        self.deadline_s = deadline_s


class Signal:
    """A fact that happens once, with a value. Any number may wait for it, before or after; taking back is O(1)."""

    __slots__ = ("_waiters", "fired", "value")

    def __init__(self) -> None:
        self.fired = False
        self.value: Any = None
        self._waiters: dict[object, Callable[[Any], None]] = {}

    @property
    def has_waiters(self) -> bool:
        return bool(self._waiters)

    def fire(self, value: "Any" = None) -> None:
        """Tell it. A second call is a bug in the caller."""
        assert not self.fired, "a signal fires once"
        self.fired = True
        self.value = value
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            waiter(value)

    def subscribe(self, waiter: "Callable[[Any], None]") -> "Callable[[], None]":
        """Call ``waiter(value)`` once it has fired; returns what takes the subscription back."""
        if self.fired:
            waiter(self.value)
            return _nothing
        key = object()
        self._waiters[key] = waiter
        return lambda: self._forget(key)

    def _forget(self, key: object) -> None:
        self._waiters.pop(key, None)


def _nothing() -> None:
    """What there is to take back when a subscription was answered at once."""
