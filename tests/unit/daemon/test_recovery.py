"""What becomes of a task after a loss: every combination of facts has one answer, and no answer guesses."""

import itertools

import pytest

from daemon.shims.recovery import Facts, Init, Shim, Task, Verdict, decide
from daemon.store.records import (
    CREATED,
    CREATING,
    DELETING,
    PAUSED,
    RESTARTING,
    RUNNING,
    STOPPED,
    TASK_STATES,
)

V = Verdict


def every_fact() -> list[Facts]:
    """All combinations that can occur."""
    found = []
    rows = (None, *TASK_STATES)
    for row, is_this_boot, has_bundle, exit_known in itertools.product(
        rows, (True, False), (True, False), (True, False)
    ):
        for task in Task:
            found.append(Facts(row, is_this_boot, has_bundle, Shim.SERVING, task, exit_known=exit_known))
        for shim, init in itertools.product((Shim.SILENT, Shim.GONE), Init):
            found.append(Facts(row, is_this_boot, has_bundle, shim, init=init, exit_known=exit_known))
    return found


@pytest.mark.parametrize(
    ("facts", "verdict", "state"),
    [
        # a shim that serves says how things are
        (Facts(RUNNING, shim=Shim.SERVING, task=Task.RUNNING), V.ADOPT, RUNNING),
        (Facts(CREATED, shim=Shim.SERVING, task=Task.RUNNING), V.ADOPT, RUNNING),
        (Facts(CREATED, shim=Shim.SERVING, task=Task.CREATED), V.ADOPT, CREATED),
        (Facts(RUNNING, shim=Shim.SERVING, task=Task.STOPPED), V.ADOPT, STOPPED),
        (Facts(STOPPED, shim=Shim.SERVING, task=Task.NONE), V.ADOPT, STOPPED),
        # killed in the middle of Tasks.Create: fully created, or forgotten
        (Facts(CREATING, shim=Shim.SERVING, task=Task.CREATED), V.ADOPT, CREATED),
        (Facts(CREATING, shim=Shim.SERVING, task=Task.STOPPED), V.ADOPT, STOPPED),
        (Facts(CREATING, shim=Shim.SERVING, task=Task.CREATING), V.DISCARD, None),
        (Facts(CREATING, shim=Shim.SERVING, task=Task.NONE), V.DISCARD, None),
        (Facts(CREATING, shim=Shim.GONE, init=Init.UNKNOWN), V.DISCARD, None),
        (Facts(CREATING, shim=Shim.GONE, init=Init.ALIVE), V.DISCARD, None),
        (Facts(CREATING, shim=Shim.GONE, has_bundle=False), V.DISCARD, None),
        # killed in the middle of Tasks.Delete
        (Facts(DELETING, shim=Shim.SERVING, task=Task.NONE), V.REAP, None),
        (Facts(DELETING, shim=Shim.SERVING, task=Task.STOPPED), V.REAP, None),
        (Facts(DELETING, shim=Shim.GONE, init=Init.DEAD), V.REAP, None),
        (Facts(DELETING, shim=Shim.GONE, has_bundle=False), V.REAP, None),
        # its shim was to restart it by policy: whoever can goes on with that; else it is over
        (Facts(STOPPED, init=Init.DEAD, exit_known=True, can_raise=True, is_coming_back=True), V.RAISE, None),
        (Facts(STOPPED, init=Init.DEAD, exit_known=True, is_coming_back=True), V.RECORD_EXIT, STOPPED),
        # killed in the middle of a restart by policy
        (Facts(RESTARTING, shim=Shim.SERVING, task=Task.RUNNING), V.ADOPT, RUNNING),
        (Facts(RESTARTING, shim=Shim.SERVING, task=Task.STOPPED), V.ADOPT, STOPPED),
        (Facts(RESTARTING, shim=Shim.SERVING, task=Task.CREATED), V.RECORD_EXIT, STOPPED),
        (Facts(RESTARTING, shim=Shim.SERVING, task=Task.NONE), V.RECORD_EXIT, STOPPED),
        (Facts(RESTARTING, shim=Shim.GONE, has_bundle=False, exit_known=True), V.RECORD_EXIT, STOPPED),
        # the shim is gone
        (Facts(RUNNING, shim=Shim.GONE, init=Init.ALIVE), V.WATCH, None),
        (Facts(PAUSED, shim=Shim.GONE, init=Init.ALIVE), V.WATCH, None),
        (Facts(RUNNING, shim=Shim.GONE, init=Init.DEAD), V.RECORD_UNKNOWN, STOPPED),
        (Facts(RUNNING, shim=Shim.GONE, init=Init.DEAD, exit_known=True), V.RECORD_EXIT, STOPPED),
        # It may have more to tell than its exit, and a delete is told by a shim.
        (Facts(STOPPED, shim=Shim.GONE, init=Init.DEAD, exit_known=True, can_raise=True), V.RAISE, None),
        (Facts(STOPPED, shim=Shim.GONE, init=Init.DEAD, exit_known=True), V.RECORD_EXIT, STOPPED),
        # the shim is silent, which proves nothing
        (Facts(RUNNING, shim=Shim.SILENT, init=Init.DEAD), V.RETRY, None),
        (Facts(RUNNING, shim=Shim.SILENT, init=Init.ALIVE), V.RETRY, None),
        (Facts(CREATING, shim=Shim.SILENT), V.RETRY, None),
        # the machine was restarted
        (Facts(RUNNING, is_this_boot=False, has_bundle=False), V.RECORD_UNKNOWN, STOPPED),
        (Facts(RUNNING, is_this_boot=False, exit_known=True), V.RECORD_EXIT, STOPPED),
        (Facts(CREATING, is_this_boot=False), V.DISCARD, None),
        (Facts(DELETING, is_this_boot=False), V.REAP, None),
        # a bundle nobody has on record
        (Facts(None, shim=Shim.GONE, init=Init.UNKNOWN), V.DISCARD, None),
        (Facts(None, shim=Shim.GONE, init=Init.ALIVE), V.LEAVE, None),
        (Facts(None, shim=Shim.SILENT), V.LEAVE, None),
        (Facts(None, shim=Shim.SERVING, task=Task.RUNNING), V.LEAVE, None),
        (Facts(None, shim=Shim.SERVING, task=Task.NONE), V.DISCARD, None),
    ],
)
def test_the_table(facts: Facts, verdict: Verdict, state: str | None) -> None:
    """One row per story."""
    decision = decide(facts)
    assert (decision.verdict, decision.state) == (verdict, state)
    assert decision.reason


def test_no_answer_kills_what_runs_or_guesses() -> None:
    """Over all facts: what must never be decided."""
    facts = every_fact()
    assert len(facts) > 500
    for one in facts:
        check_never(one)


def check_never(facts: Facts) -> None:
    decision = decide(facts)
    told = f"{facts} → {decision}"
    ends = (V.REAP, V.DISCARD)
    if facts.is_this_boot and facts.row is not None and facts.shim is Shim.SERVING and facts.task is Task.RUNNING:
        assert decision.verdict is V.ADOPT, told  # a container that runs is never taken down
    if facts.is_this_boot and facts.shim is Shim.SILENT:
        assert decision.verdict in (V.RETRY, V.LEAVE), told  # silence decides nothing
    if facts.is_this_boot and facts.shim is Shim.GONE and facts.init is Init.ALIVE and not facts.exit_known:
        assert decision.verdict not in ends or facts.row == CREATING, told
        assert decision.verdict is not V.RECORD_UNKNOWN, told  # it lives
    if facts.exit_known and facts.row is not None:
        assert decision.verdict is not V.RECORD_UNKNOWN, told  # a status that is known is never given up
    if facts.row is None:
        assert decision.verdict in (V.LEAVE, V.DISCARD), told
    if decision.verdict in (V.RECORD_EXIT, V.RECORD_UNKNOWN):
        assert decision.state == STOPPED, told
