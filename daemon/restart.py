"""Restart policies, as containerd's labels say them. Pure: what the labels ask for; `shim.policy` decides.

containerd.io/restart.status=running             wanted running: without it no policy acts
containerd.io/restart.policy                     no | on-failure[:N] | always (the default) | unless-stopped
containerd.io/restart.explicitly-stopped=true    the user stopped it: no restart but `always` after a reboot
containerd.io/restart.count                      how often the policy restarted it; written by us
"""

from collections.abc import Mapping

from daemon.errors import invalid_argument
from shim import policy
from shim.policy import ALWAYS, NO, ON_FAILURE, UNLESS_STOPPED, Policy
from shim.policy import Backoff as Backoff
from shim.policy import Decision as Decision
from shim.policy import Ended as Ended

STATUS_LABEL = "containerd.io/restart.status"
POLICY_LABEL = "containerd.io/restart.policy"
COUNT_LABEL = "containerd.io/restart.count"
STOPPED_LABEL = "containerd.io/restart.explicitly-stopped"

_TRUE = ("1", "t", "T", "true", "TRUE", "True")  # what Go's strconv.ParseBool takes for true


MAX_RESTARTS = (1 << 32) - 1  # uint32 in SetRestartRequest


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
    if name == ON_FAILURE and count.isascii() and count.isdecimal() and int(count) <= MAX_RESTARTS:
        return Policy(ON_FAILURE, int(count))
    raise invalid_argument(
        f"restart policy {text!r}: write no, on-failure, on-failure:N (at most N restarts), always or unless-stopped"
    )


def is_explicitly_stopped(labels: Mapping[str, str]) -> bool:
    return labels.get(STOPPED_LABEL) in _TRUE


def policy_of(labels: Mapping[str, str]) -> Policy:
    """The policy that acts: none unless the container is wanted running. Raises: InvalidArgument."""
    return parse_policy(labels.get(POLICY_LABEL, "")) if labels.get(STATUS_LABEL) == "running" else Policy(NO)


def decide(labels: Mapping[str, str], ended: Ended, backoff: Backoff, *, is_after_reboot: bool = False) -> Decision:
    """Whether, and after which pause, the task is started again.

    Raises: InvalidArgument for a policy that cannot be read.
    """
    wanted = policy_of(labels)
    is_stopped = is_explicitly_stopped(labels) and not (wanted.name == ALWAYS and is_after_reboot)
    return policy.decide(wanted, ended, backoff, is_stopped=is_stopped)
