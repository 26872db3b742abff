"""Restart policies as pure decisions, and their acting on a clock that jumps."""

import pytest

from daemon import restart
from daemon.restart import Backoff, Ended, decide, parse_policy
from ttrpc.errors import StatusError
from ttrpc.status import Code

BACKOFF = Backoff(min_s=0.1, max_s=60.0, reset_after_s=10.0)


def labels(policy: str, *, stopped: bool = False, status: str = "running") -> dict[str, str]:
    made = {restart.STATUS_LABEL: status, restart.POLICY_LABEL: policy}
    if stopped:
        made[restart.STOPPED_LABEL] = "true"
    return made


def ended(status: int | None = 1, *, ran_for_s: float = 1.0, restarts: int = 0, streak: int = 0) -> Ended:
    return Ended(status, ran_for_s, restarts, streak)


@pytest.mark.parametrize(
    ("policy", "stopped", "task", "rebooted", "restarts"),
    [
        ("no", False, ended(1), False, False),
        ("always", False, ended(0), False, True),
        ("", False, ended(0), False, True),  # containerd: a status without a policy means always
        ("unless-stopped", False, ended(0), False, True),
        ("on-failure", False, ended(0), False, False),
        ("on-failure", False, ended(137), False, True),
        ("on-failure", False, ended(None), False, True),  # nobody knows how it ended: not a success
        ("on-failure:3", False, ended(1, restarts=2), False, True),
        ("on-failure:3", False, ended(1, restarts=3), False, False),
        ("on-failure:0", False, ended(1, restarts=99), False, True),
        # the user stopped it
        ("always", True, ended(143), False, False),
        ("unless-stopped", True, ended(143), False, False),
        ("on-failure", True, ended(143), False, False),
        # … and then the machine was restarted
        ("always", True, ended(143), True, True),
        ("unless-stopped", True, ended(143), True, False),
        ("unless-stopped", False, ended(None), True, True),
    ],
)
def test_policies(policy: str, stopped: bool, task: Ended, rebooted: bool, restarts: bool) -> None:
    """Who comes back, and who does not."""
    decision = decide(labels(policy, stopped=stopped), task, BACKOFF, is_after_reboot=rebooted)
    assert (decision.pause_s is not None) is restarts


def test_without_the_status_label_nothing_comes_back() -> None:
    """The policy's label alone is a wish of the past: containerd acts on the status only."""
    assert decide({restart.POLICY_LABEL: "always"}, ended(1), BACKOFF).pause_s is None
    assert decide(labels("always", status="stopped"), ended(1), BACKOFF).pause_s is None
    assert decide({}, ended(1), BACKOFF).pause_s is None


def test_pauses_double_up_to_the_longest() -> None:
    """100 ms, 200 ms, … 60 s, and no overflow after a thousand."""
    pauses = [decide(labels("always"), ended(streak=streak), BACKOFF).pause_s for streak in range(12)]
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[9] == pytest.approx(51.2)
    assert pauses[10:] == [60.0, 60.0]
    assert decide(labels("always"), ended(streak=100_000), BACKOFF).pause_s == 60.0


def test_a_good_run_resets_the_pause() -> None:
    """Ten seconds count as having come up."""
    assert decide(labels("always"), ended(streak=7, ran_for_s=9.9), BACKOFF).streak == 7
    good = decide(labels("always"), ended(streak=7, ran_for_s=10.0), BACKOFF)
    assert (good.pause_s, good.streak) == (0.1, 0)


@pytest.mark.parametrize(
    "text",
    [
        "sometimes",
        "always:3",
        "on-failure:",
        "on-failure:x",
        "on-failure:-1",
        "on-failure:²",
        f"on-failure:{1 << 32}",
        "no:1",
    ],
)
def test_a_policy_nobody_can_read_is_refused(text: str) -> None:
    """At Containers.Create, not at the first exit."""
    with pytest.raises(StatusError, match="write no, on-failure") as caught:
        parse_policy(text)
    assert caught.value.code == Code.INVALID_ARGUMENT
