"""Restart policies: what is due after an exit, and when; how runs are named. Pure, and its one home.

Imports nothing: a shim has it in memory only when it was given a policy.
"""

NO, ON_FAILURE, ALWAYS, UNLESS_STOPPED = "no", "on-failure", "always", "unless-stopped"
NAMES = (NO, ON_FAILURE, ALWAYS, UNLESS_STOPPED)


def journal_of(incarnation: str) -> str:
    """The name of the journal a run is told in: the part all runs of one bundle have."""
    return incarnation.partition(".")[0]


def run_of(incarnation: str) -> int:
    """Which restart by policy a run is the outcome of; 0: it is the first run."""
    number = incarnation.partition(".")[2]
    return int(number) if number.isdigit() else 0


class Policy:
    """What a user wants to happen after an exit. ``max_restarts`` is of on-failure; 0: no limit."""

    __slots__ = ("max_restarts", "name")

    def __init__(self, name: str, max_restarts: int = 0) -> None:
        self.name = name
        self.max_restarts = max_restarts


class Ended:
    """What a run was when it ended. ``exit_status`` None: nobody knows, taken for a failure.

    ``restarts``: by the policy so far; ``streak``: of them, those in a row that ended too soon.
    """

    __slots__ = ("exit_status", "ran_for_s", "restarts", "streak")

    def __init__(self, exit_status: "int | None", ran_for_s: float, restarts: int, streak: int) -> None:
        self.exit_status = exit_status
        self.ran_for_s = ran_for_s
        self.restarts = restarts
        self.streak = streak


class Backoff:
    """How pauses between restarts grow, when they begin anew, and how many in a row there may be (0: any number)."""

    __slots__ = ("budget", "max_s", "min_s", "reset_after_s")

    def __init__(self, min_s: float, max_s: float, reset_after_s: float, budget: int = 0) -> None:
        self.min_s = min_s
        self.max_s = max_s
        self.reset_after_s = reset_after_s
        self.budget = budget

    def pause_s(self, streak: int) -> float:
        """The pause before restart number ``streak + 1`` in a row; doubles, up to the longest."""
        # Beyond 2**60 the float's product is over any sane bound; the shift alone would grow without one.
        return min(self.max_s, self.min_s * float(2 ** min(streak, 60)))


class Decision:
    """Restart after ``pause_s``, or leave it (None) for the reason. ``streak`` is what to remember.

    ``gave_up``: the policy would restart it, had that not been tried often enough.
    """

    __slots__ = ("gave_up", "pause_s", "reason", "streak")

    def __init__(self, pause_s: "float | None", streak: int, reason: str, *, gave_up: bool = False) -> None:
        self.pause_s = pause_s
        self.streak = streak
        self.reason = reason
        self.gave_up = gave_up


def decide(policy: Policy, ended: Ended, backoff: Backoff, *, is_stopped: bool = False) -> Decision:
    """Whether, and after which pause, it is started again. ``is_stopped``: the user ended it."""
    streak = 0 if ended.ran_for_s >= backoff.reset_after_s else ended.streak
    if policy.name == NO:
        return Decision(None, streak, "policy no")
    if is_stopped:
        return Decision(None, streak, "the user stopped it")
    if policy.name == ON_FAILURE:
        if ended.exit_status == 0:
            return Decision(None, streak, "it succeeded")
        if policy.max_restarts and ended.restarts >= policy.max_restarts:
            reason = f"it failed again after {ended.restarts} restarts, the most its policy allows"
            return Decision(None, streak, reason, gave_up=True)
    if backoff.budget and streak >= backoff.budget:
        reason = f"it ended too soon {streak + 1} times in a row, the most that is tried"
        return Decision(None, streak, reason, gave_up=True)
    return Decision(backoff.pause_s(streak), streak, f"policy {policy.name}")
