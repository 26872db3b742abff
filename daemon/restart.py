"""Restart policies, as containerd's labels say them. Pure: what is due after an exit, and when.

containerd.io/restart.status=running             wanted running: without it no policy acts
containerd.io/restart.policy                     no | on-failure[:N] | always (the default) | unless-stopped
containerd.io/restart.explicitly-stopped=true    the user stopped it: no restart but `always` after a reboot
containerd.io/restart.count                      how often the policy restarted it; written by us
"""

import dataclasses
from collections.abc import Mapping

from daemon.errors import invalid_argument

STATUS_LABEL = "containerd.io/restart.status"
POLICY_LABEL = "containerd.io/restart.policy"
COUNT_LABEL = "containerd.io/restart.count"
STOPPED_LABEL = "containerd.io/restart.explicitly-stopped"

NO, ON_FAILURE, ALWAYS, UNLESS_STOPPED = "no", "on-failure", "always", "unless-stopped"
_TRUE = ("1", "t", "T", "true", "TRUE", "True")  # what Go's strconv.ParseBool takes for true


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """What a user wants to happen after an exit."""

    name: str
    max_restarts: int = 0  # of on-failure; 0: no limit


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """What a task was when it ended."""

    exit_status: int | None  # None: nobody knows; taken for a failure
    ran_for_s: float
    restarts: int  # by the policy so far
    streak: int  # of them, those in a row that ended too soon
    is_after_reboot: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Backoff:
    """How pauses between restarts grow, and when they begin anew."""

    min_s: float
    max_s: float
    reset_after_s: float

    def pause_s(self, streak: int) -> float:
        """The pause before restart number ``streak + 1`` in a row; doubles, up to the longest."""
        # Beyond 2**60 the float's product is over any sane bound; the shift alone would grow without one.
        return min(self.max_s, self.min_s * float(2 ** min(streak, 60)))


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """Restart after ``pause_s``, or leave it (None) for the reason. `streak` is what to remember."""

    pause_s: float | None
    streak: int
    reason: str


def parse_policy(text: str) -> Policy:
    """A policy as users and labels write it; empty is `always`, as in containerd.

    Raises: InvalidArgument.
    """
    name, colon, count = text.partition(":")
    if name in ("", ALWAYS) and not colon:
        return Policy(ALWAYS)
    if name in (NO, UNLESS_STOPPED) and not colon:
        return Policy(name)
    if name == ON_FAILURE and not colon:
        return Policy(ON_FAILURE)
    if name == ON_FAILURE and count.isdigit():
        return Policy(ON_FAILURE, int(count))
    raise invalid_argument(
        f"restart policy {text!r}: write no, on-failure, on-failure:N (at most N restarts), always or unless-stopped"
    )


def is_explicitly_stopped(labels: Mapping[str, str]) -> bool:
    return labels.get(STOPPED_LABEL) in _TRUE


def decide(labels: Mapping[str, str], ended: Ended, backoff: Backoff) -> Decision:
    """Whether, and after which pause, the task is started again.

    Raises: InvalidArgument for a policy that cannot be read.
    """
    streak = 0 if ended.ran_for_s >= backoff.reset_after_s else ended.streak
    if labels.get(STATUS_LABEL) != "running":
        return Decision(None, streak, "no restart is wanted")
    policy = parse_policy(labels.get(POLICY_LABEL, ""))
    refusal = _refusal(policy, labels, ended)
    if refusal:
        return Decision(None, streak, refusal)
    return Decision(backoff.pause_s(streak), streak, f"policy {policy.name}")


def _refusal(policy: Policy, labels: Mapping[str, str], ended: Ended) -> str | None:
    """Why the policy lets it be; None when it does not."""
    if policy.name == NO:
        return "policy no"
    if is_explicitly_stopped(labels) and not (policy.name == ALWAYS and ended.is_after_reboot):
        return "the user stopped it"
    if policy.name == ON_FAILURE:
        if ended.exit_status == 0:
            return "it succeeded"
        if policy.max_restarts and ended.restarts >= policy.max_restarts:
            return f"it failed again after {ended.restarts} restarts, the most its policy allows"
    return None
