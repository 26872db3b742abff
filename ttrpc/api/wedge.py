"""When a shim is wedged, and what is done about it: a rule over looks at its process. Pure: no clock, no process.

A shim that is slow because it gets no processor must never be taken for one that hangs. So a turn of its loop is judged
by the time that was its own: what it ran, and what it slept while two looks in a row found it asleep in that turn. What
it waited for a processor is not counted, and neither is what cannot be told.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ttrpc.api.pulse import Look

# What a shim is at. Of the first four none is a fault; STUCK and STOPPED may be cured by a successor.
WELL, IDLE, BUSY, GONE = "well", "idle", "busy", "gone"
STUCK = "stuck"  # one turn of its loop does not end: an endless loop, or a system call that does not return
STOPPED = "stopped"  # by a signal
TRACED = "traced"  # by a debugger: somebody is at it
FROZEN = "frozen"  # with its cgroup: somebody wanted that
KERNEL = "in the kernel"  # an uninterruptible wait: not even SIGKILL ends it

# What is to be done.
NOTHING = "nothing"
REPORT = "report"
CONTINUE = "continue"  # and report
REPLACE = "replace"
RECOVERED = "recovered"  # what was reported is over

CURABLE = (STUCK, STOPPED)
# How much a host must lack memory before waiting proves nothing: percent of the last ten seconds in which all waited.
STALLED_PERCENT = 10.0


class Limits:
    """For how long a shim may be so before it is reported, and how much longer before it is replaced. Nanoseconds."""

    __slots__ = ("after_ns", "grace_ns")

    def __init__(self, after_s: float, grace_s: float) -> None:
        self.after_ns = int(after_s * 1e9)
        self.grace_ns = int(grace_s * 1e9)


class Case:
    """What is known of one shim from one look to the next. A spell is how long it is at one thing, or in one turn."""

    __slots__ = ("fault", "kernel_ns", "last", "own_ns", "reported_at_ns", "since_ns", "spell")

    def __init__(self, look: "Look") -> None:
        self._begin(look)

    def _begin(self, look: "Look") -> None:
        self.last = look
        self.fault = WELL  # what was reported
        self.reported_at_ns = 0
        self.spell = spell_of(look)
        self.since_ns = look.at_ns
        self.own_ns = 0
        self.kernel_ns = 0

    def judge(self, look: "Look", limits: Limits, *, stall_percent: float = 0.0) -> str:
        """Take one more look into account; what is to be done now. ``stall_percent``: see `STALLED_PERCENT`."""
        last = self.last
        is_another = (look.pid, look.start_ticks) != (last.pid, last.start_ticks)
        if is_another or spell_of(look) != self.spell or look.turns != last.turns:
            was_reported = self.fault != WELL
            self._begin(look)
            return RECOVERED if was_reported and not is_another and self.spell != GONE else NOTHING
        self._count(look)
        self.last = look
        return self._decide(look, limits, stall_percent)

    def _count(self, look: "Look") -> None:
        """Add what the time since the last look was."""
        last = self.last
        ran_ns = look.cpu_ns - last.cpu_ns
        asleep_ns = max(0, look.at_ns - last.at_ns - ran_ns - (look.queued_ns - last.queued_ns))
        self.own_ns += ran_ns
        if look.state == last.state == "S":
            self.own_ns += asleep_ns
        elif look.state == last.state == "D":
            self.kernel_ns += asleep_ns

    def _decide(self, look: "Look", limits: Limits, stall_percent: float) -> str:
        fault, spent_ns = self._fault(look)
        if fault == WELL or spent_ns < limits.after_ns:
            return NOTHING
        if self.fault == WELL or (self.fault, fault) == (KERNEL, STUCK):
            self.fault, self.reported_at_ns = fault, look.at_ns
            return CONTINUE if fault == STOPPED else REPORT
        if self.fault not in CURABLE or stall_percent >= STALLED_PERCENT or fault not in CURABLE:
            return NOTHING
        is_due = look.at_ns - self.reported_at_ns >= limits.grace_ns
        return REPLACE if is_due and spent_ns >= limits.after_ns + limits.grace_ns else NOTHING

    def words(self) -> str:
        """What was reported, in a sentence for people."""
        since_ns = self.last.busy_since_ns if self.fault == STUCK else None
        span_s = (self.last.at_ns - (since_ns or self.since_ns)) / 1e9
        return f"{_WORDS[self.fault]}, for {span_s:.1f} s now (state {self.last.state})"

    def _fault(self, look: "Look") -> "tuple[str, int]":
        """What is the matter if it goes on, and for how long it has been."""
        if self.spell in (STOPPED, TRACED, FROZEN, KERNEL):
            return self.spell, look.at_ns - self.since_ns
        if self.spell != BUSY:
            return WELL, 0
        if look.state == "D" and self.kernel_ns >= self.own_ns:
            return KERNEL, self.kernel_ns
        return STUCK, self.own_ns


_WORDS = {
    STUCK: "one turn of its loop does not end",
    STOPPED: "it is stopped by a signal",
    TRACED: "a debugger has stopped it",
    FROZEN: "its cgroup is frozen",
    KERNEL: "it hangs in the kernel, where no signal reaches it",
    WELL: "nothing is the matter",
}


def spell_of(look: "Look") -> str:
    """What a look shows the shim at. Pure."""
    if look.state in ("", "Z", "X"):
        return GONE
    if look.state == "T":
        return STOPPED
    if look.state == "t":
        return TRACED
    if look.is_frozen:
        return FROZEN
    if look.busy_since_ns:
        return BUSY
    return KERNEL if look.state == "D" else IDLE
