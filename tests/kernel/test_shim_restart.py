"""Restart by policy in the shim: pauses, limits, what ends it, and a shim killed in the middle of it."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from shim.core import pidfds
from tests.support.keptbox import KeptBox
from tests.support.shimbox import SHIM, ShimBox
from tests.support.waiting import wait_until
from ttrpc.api import runc, shim
from ttrpc.errors import StatusError
from ttrpc.status import Code

# Fails at once; which run it was is in the file, and in the log.
FAILING = ["sh", "-c", "echo x >>/runs; echo run $(wc -l </runs); exit 3"]
# Fails until the file is there.
PATIENT = ["sh", "-c", "echo run; while [ ! -e /go ]; do usleep 10000; done; exit 3"]
STOPPED = 3


@pytest.fixture
def box() -> Iterator[ShimBox]:
    with ShimBox(FAILING) as box:
        yield box


def set_restart(box: ShimBox, policy: str = "always", first_ms: int = 50, **fields: Any) -> Any:
    terms = {"longest_pause_ms": 60_000, "reset_after_ms": 10_000, **fields}
    request = shim.SetRestartRequest(policy=policy, first_pause_ms=first_ms, **terms)
    return box.call("SetRestart", request, service=SHIM)


def begin(box: ShimBox, policy: str = "always", first_ms: int = 50, **fields: Any) -> None:
    """Create, set the policy, start; with a log."""
    box.create(stdout=f"log://{box.folder}/log?format=raw")
    set_restart(box, policy, first_ms, **fields)
    box.start()


def log_lines(box: ShimBox) -> list[str]:
    with open(os.path.join(box.folder, "log"), encoding="utf-8") as file:
        return file.read().splitlines()


def is_waiting(box: ShimBox) -> bool:
    return bool(box.info().restart.HasField("next_at"))


def story(records: list[Any]) -> list[str]:
    """Topic and run of each record: `exit.0`, `restarting.0`, `delete.0`, `create.1`, …"""
    return [
        f"{record.topic.rpartition('/')[2]}.{record.incarnation.partition('.')[2] or 0}"
        for record in records
        if record.topic != "/tasks/oom"
    ]


def whole_story(box: ShimBox) -> list[str]:
    """All records there are now."""
    newest = box.info().journal_seq
    return story(box.events(lambda record: record.seq >= newest))


def life(run: int) -> list[str]:
    """What is told of a run from its creation to the one after it."""
    return [f"create.{run}", f"start.{run}", f"exit.{run}", f"restarting.{run}", f"delete.{run}"]


def test_it_is_restarted_until_its_number_and_given_up(box: ShimBox) -> None:
    """Four runs, each an incarnation with one exit, pauses that double, one log in order."""
    begin(box, "on-failure", max_restarts=3)
    records = box.events("/shimd/restart-gave-up")

    last = ["create.3", "start.3", "exit.3", "restart-gave-up.3"]
    assert story(records) == [*life(0), *life(1), *life(2), *last]
    plans = [shim.Restarting.FromString(each.event.value) for each in records if each.topic == "/shimd/restarting"]
    assert [(plan.restart, plan.pause_ms) for plan in plans] == [(1, 50), (2, 100), (3, 200)]
    assert log_lines(box) == ["run 1", "run 2", "run 3", "run 4"]
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    state, told = box.state(), box.info().restart
    assert (state.status, state.exit_status) == (STOPPED, 3)
    assert (told.restarts, told.HasField("next_at")) == (3, False)
    assert "after 3 restarts" in told.reason
    assert box.delete().exit_status == 3


def test_a_budget_ends_always(box: ShimBox) -> None:
    begin(box, budget=2)
    gave_up = shim.RestartGaveUp.FromString(box.events("/shimd/restart-gave-up")[-1].event.value)

    assert (gave_up.restarts, gave_up.by_user) == (2, False)
    assert "in a row" in gave_up.reason


def test_a_long_enough_run_begins_the_row_anew(box: ShimBox) -> None:
    """Every run is long enough here: no pause grows, and no budget is used up."""
    begin(box, reset_after_ms=1, budget=1)
    records = box.events(lambda record: record.topic == "/tasks/start" and record.incarnation.endswith(".4"))

    plans = [shim.Restarting.FromString(each.event.value) for each in records if each.topic == "/shimd/restarting"]
    assert [plan.pause_ms for plan in plans] == [50, 50, 50, 50]
    set_restart(box, "no")


def test_without_a_failure_on_failure_leaves_it() -> None:
    with ShimBox(["true"]) as box:
        begin(box, "on-failure")
        assert box.wait().exit_status == 0
        wait_until(lambda: box.info().restart.reason == "it succeeded", what="its decision")
        assert whole_story(box) == ["create.0", "start.0", "exit.0"]


def test_a_signal_while_it_waits_ends_it(box: ShimBox) -> None:
    begin(box, first_ms=60_000)
    box.wait()
    wait_until(lambda: is_waiting(box), what="the pause")
    box.kill(15)

    assert whole_story(box)[-2:] == ["restarting.0", "restart-gave-up.0"]
    assert (box.state().status, is_waiting(box)) == (STOPPED, False)
    assert json.loads(box.read("state.json"))["restart"]["stopped"]
    with pytest.raises(StatusError) as error:
        box.kill(15)
    assert error.value.code == Code.NOT_FOUND
    assert box.delete().exit_status == 3


def test_a_wish_to_stop_ends_it_and_its_opposite_brings_it_back(box: ShimBox) -> None:
    """While it waits, and while it runs: then nothing follows the end."""
    begin(box, first_ms=60_000)
    box.wait()
    wait_until(lambda: is_waiting(box), what="the pause")
    set_restart(box, stopped=True)
    assert not is_waiting(box)
    set_restart(box, first_ms=1)
    assert not is_waiting(box), "an end that was left stays left"
    set_restart(box, first_ms=1, decide_now=True)
    box.events(lambda record: record.incarnation.endswith(".1") and record.topic == "/tasks/start")
    set_restart(box, stopped=True)


def test_delete_while_it_waits(box: ShimBox) -> None:
    begin(box, first_ms=60_000)
    box.wait()
    wait_until(lambda: is_waiting(box), what="the pause")

    assert box.delete().exit_status == 3
    assert whole_story(box)[-3:] == ["restarting.0", "restart-gave-up.0", "delete.0"]
    box.shutdown()
    box.wait_for_shim_end()
    assert log_lines(box) == ["run 1"]


def test_a_restart_that_cannot_be_is_counted_and_tried_again() -> None:
    """The rootfs is away for a while; how the last run ended stays known."""
    with ShimBox(PATIENT) as box:
        begin(box, first_ms=20)
        os.rename(box.rootfs, f"{box.rootfs}.away")
        box.kill(9)
        wait_until(lambda: box.info().restart.restarts >= 2, what="attempts")
        assert (box.state().status, box.state().exit_status) == (STOPPED, 137)
        os.rename(f"{box.rootfs}.away", box.rootfs)
        records = box.events(lambda record: record.topic == "/tasks/start" and "." in record.incarnation)
        tries = [each for each in records if each.topic == "/shimd/restarting"]
        assert int(records[-1].incarnation.partition(".")[2]) == len(tries) >= 2
        assert "failed" in shim.Restarting.FromString(tries[-1].event.value).reason
        set_restart(box, stopped=True)


def test_execs_end_with_their_run() -> None:
    with ShimBox(PATIENT) as box:
        begin(box, first_ms=1)
        box.add_exec("e", ["sleep", "1000"])
        box.start("e")
        box.kill(9)
        records = box.events(lambda record: record.topic == "/tasks/start" and record.incarnation.endswith(".1"))
        assert [each.exit.exec_id for each in records if each.HasField("exit")] == ["e", ""]
        with pytest.raises(StatusError) as error:
            box.state("e")
        assert error.value.code == Code.NOT_FOUND
        box.run_exec("e", ["true"])
        set_restart(box, stopped=True)


def test_terms_nobody_can_keep_are_refused(box: ShimBox) -> None:
    box.create()
    for policy, fields in (("sometimes", {}), ("always", {"max_restarts": 3}), ("always", {"first_ms": 0})):
        with pytest.raises(StatusError) as error:
            set_restart(box, policy, **fields)
        assert error.value.code == Code.INVALID_ARGUMENT
    assert "restart" not in json.loads(box.read("state.json"))


# --- a shim that is killed


def test_a_shim_killed_while_it_waits_is_followed_by_one_that_waits_on(box: ShimBox) -> None:
    """The deadline is the old one, and it is kept by whoever is there then."""
    begin(box, first_ms=3000)
    box.wait()
    wait_until(lambda: is_waiting(box), what="the pause")
    due = box.info().restart.next_at
    box.replace_shim()
    wait_until(lambda: is_waiting(box), what="the successor")
    assert box.info().restart.next_at == due
    box.events(lambda record: record.topic == "/tasks/exit" and record.incarnation.endswith(".1"))
    set_restart(box, stopped=True)
    assert whole_story(box)[:8] == [*life(0), "create.1", "start.1", "exit.1"]
    assert log_lines(box)[:2] == ["run 1", "run 2"]


def wrapped_runc(box: ShimBox, verb: str, *, after: bool) -> str:
    """A runc that kills its shim once, before or after it has done this verb of a restart."""
    path = os.path.join(box.folder, "runc-wrapper")
    kill = f'if [ "$is" = 1 ] && [ -e {box.folder}/armed ]; then rm {box.folder}/armed; kill -9 $PPID; fi'
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            "#!/bin/sh\nis=0\n"
            f'for word; do case "$word" in {verb}) is=1;; create|start|delete|state|kill) break;; esac; done\n'
            + (f'runc "$@"; code=$?\n{kill}\nexit $code\n' if after else f'{kill}\nexec runc "$@"\n')
        )
    os.chmod(path, 0o755)
    return path


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("kind", "verb"), [(KeptBox, "delete"), (KeptBox, "create"), (KeptBox, "start"), (ShimBox, "create")]
)
def test_a_shim_killed_in_the_middle_of_a_restart_is_followed_exactly(
    kind: type[ShimBox], verb: str, after: bool
) -> None:
    """Whatever was under way: one exit for each run, no run twice, the counts as if nothing had been."""
    with kind(FAILING) as box:
        options = runc.Options(root=box.runc_root, binary_name=wrapped_runc(box, verb, after=after))
        box.create(stdout=f"log://{box.folder}/log?format=raw", options=options)
        set_restart(box, "on-failure", first_ms=500, max_restarts=2)
        box.start()
        box.wait()
        arm(box)
        box.wait_for_shim_end()
        box.disconnect()
        raise_successor(box)
        records = box.events("/shimd/restart-gave-up")

        last = ["create.2", "start.2", "exit.2", "restart-gave-up.2"]
        assert story(records) == [*life(0), *life(1), *last]
        # Without a keeper an older kernel tells nobody, and no code is given.
        second = 3 if kind is KeptBox or pidfds.keeps_exit_status() else 0
        assert [record.exit.code for record in records if record.HasField("exit")] == [3, second, 3]
        assert log_lines(box) == ["run 1", "run 2", "run 3"]
        assert box.info().restart.restarts == 2
        assert box.delete().exit_status == 3


def arm(box: ShimBox) -> None:
    with open(os.path.join(box.folder, "armed"), "w", encoding="utf-8"):
        pass


def raise_successor(box: ShimBox) -> None:
    if isinstance(box, KeptBox):
        box.find_shim()
    else:
        box.launch()


def test_shims_killed_at_any_moment_lose_and_double_nothing() -> None:
    """Kill after kill while it fails and fails."""
    with KeptBox(FAILING) as box:
        begin(box, "on-failure", first_ms=20, max_restarts=6, reset_after_ms=1)
        for _ in range(8):
            box.kill_shim()
        records = box.events("/shimd/restart-gave-up", timeout_s=60)

        runs = [int(record.incarnation.partition(".")[2] or 0) for record in records if record.topic == "/tasks/exit"]
        assert runs == list(range(7))
        assert log_lines(box) == [f"run {number}" for number in range(1, 8)]
        assert story(records)[-1] == "restart-gave-up.6"
