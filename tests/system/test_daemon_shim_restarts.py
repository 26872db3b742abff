"""The shim restarts its container by policy; the daemon sets that, may be away meanwhile, and learns of every run."""

import json
import os
import signal
from collections.abc import Iterator

import pytest

from daemon import restart
from daemon.faults import ARMED
from tests.support.daemonbox import CONTAINERS, NAMESPACE, SHIMD, DaemonBox, restart_labels
from tests.support.waiting import wait_until
from tests.system.test_daemon_restart_policy import STOPPED, is_running_again, labels_of, update_label
from ttrpc.api import containers, process, shim, shimd, wkt

FAILING = ("sh", "-c", "echo x >>/runs; echo run $(wc -l </runs); exit 3")
# Fails as often, then stays.
FIVE = ("sh", "-c", "echo x >>/runs; n=$(wc -l </runs); echo run $n; [ $n -gt 5 ] && exec sleep 1000; exit 3")
SLOW = "restart.backoff_min_s = 60"


@pytest.fixture
def slow() -> Iterator[DaemonBox]:
    """A daemon whose restarts wait for a minute."""
    with DaemonBox(config=SLOW) as box:
        yield box


def planned(box: DaemonBox, container_id: str) -> dict[str, object]:
    """What the shim has on disk of its restarts."""
    with open(os.path.join(box.bundle(container_id), "state.json"), encoding="utf-8") as file:
        found = json.load(file).get("restart") or {}
    assert isinstance(found, dict)
    return found


def is_planned(box: DaemonBox, container_id: str) -> bool:
    return bool(box.shim(container_id).HasField("next_restart_at"))


def runs(records: list[shim.ExitRecord]) -> list[int]:
    return [int(record.incarnation.partition(".")[2] or 0) for record in records]


def test_five_restarts_while_the_daemon_is_away_are_all_learned_of(box: DaemonBox) -> None:
    """In their order, each exit stored once; then the row is the run that stays."""
    box.create_container("c1", *FIVE, labels=restart_labels("always"))
    box.create_task("c1")
    box.start_task("c1")
    box.kill()
    wait_until(lambda: planned(box, "c1")["restarts"] == 5, deadline_s=30, what="five restarts")
    box.start()
    wait_until(lambda: box.shim("c1").restarts == 5 and box.task("c1").status == process.RUNNING, what="the last run")

    life = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    wait_until(lambda: box.topics("c1") == [*life * 5, "/tasks/create", "/tasks/start"], what="every event, in order")
    exits = box.exits("c1")
    assert runs(exits) == [0, 1, 2, 3, 4]
    assert [record.code for record in exits] == [3] * 5
    assert runs([box.shim("c1")]) == [5]  # type: ignore[list-item]  # it has an incarnation too
    assert labels_of(box, "c1")[restart.COUNT_LABEL] == "5"
    assert box.output("c1").split("\n")[:-1] == [f"run {number}" for number in range(1, 7)]
    box.restart()
    assert runs(box.exits("c1")) == [0, 1, 2, 3, 4]
    box.signal("c1")
    wait_until(lambda: runs(box.exits("c1")) == [0, 1, 2, 3, 4, 5], what="the exit of the last run")
    wait_until(lambda: is_running_again(box, "c1", 0), deadline_s=20, what="the run after it")


def test_the_daemon_killed_again_and_again_stores_each_exit_once(box: DaemonBox) -> None:
    box.run("c1", *FAILING, labels=restart_labels("on-failure:6"))
    for _ in range(4):
        box.restart()
    wait_until(lambda: "restart-gave-up" in str(shimd_topics(box)), deadline_s=60, what="its rest")

    assert runs(box.exits("c1")) == list(range(7))
    assert box.shim("c1").restarts == 6
    assert shimd_topics(box) == ["/shimd/restarting"] * 6 + ["/shimd/restart-gave-up"]
    assert box.wait("c1").exit_status == 3


def shimd_topics(box: DaemonBox) -> list[str]:
    return [event.topic for event in box.events() if event.topic.startswith("/shimd/")]


def test_a_signal_while_it_waits_is_the_users_stop(slow: DaemonBox) -> None:
    """Also after a restart of the daemon; a new start takes it back."""
    slow.run("c1", *FAILING, labels=restart_labels("always"))
    slow.wait("c1")
    wait_until(lambda: is_planned(slow, "c1"), what="the plan")
    slow.restart()
    wait_until(lambda: is_planned(slow, "c1"), what="the plan, found again")
    slow.signal("c1", signal.SIGTERM)
    wait_until(lambda: not is_planned(slow, "c1"), what="the plan to be dropped")

    assert labels_of(slow, "c1")[STOPPED] == "true"
    slow.restart()
    assert not is_planned(slow, "c1")
    assert slow.task("c1").status == process.STOPPED
    slow.delete_task("c1")
    slow.create_task("c1")
    slow.start_task("c1")
    slow.wait("c1")
    wait_until(lambda: is_planned(slow, "c1"), what="the plan after a new start")


def test_labels_reach_the_shim_at_once(slow: DaemonBox) -> None:
    """What the user stopped is not planned any more; a policy given while it runs counts at its end."""
    slow.run("c1", *FAILING, labels=restart_labels("always"))
    slow.wait("c1")
    wait_until(lambda: is_planned(slow, "c1"), what="the plan")
    update_label(slow, "c1", STOPPED, "true")
    assert planned(slow, "c1")["stopped"] is True
    assert not is_planned(slow, "c1")

    slow.run("c2", "sleep", "1000")
    assert planned(slow, "c2") == {}, "a container without a policy costs nothing"
    update_label(slow, "c2", restart.POLICY_LABEL, "always")
    update_label(slow, "c2", restart.STATUS_LABEL, "running")
    slow.signal("c2")
    wait_until(lambda: is_planned(slow, "c2"), what="the plan")


def test_delete_and_force_delete_end_a_loop(box: DaemonBox) -> None:
    box.run("c1", *FAILING, labels=restart_labels("always"))
    wait_until(lambda: box.shim("c1").restarts >= 1, what="a restart")
    box.call(SHIMD, "ForceDelete", shimd.ForceDeleteRequest(container_id="c1"))
    assert not box.call(SHIMD, "Shims", shimd.ShimsRequest()).shims
    stored = runs(box.exits("c1"))
    assert stored == list(range(len(stored)))
    assert not os.path.exists(box.bundle("c1"))


def test_a_shim_killed_in_the_pause_is_raised_for_it(slow: DaemonBox) -> None:
    """Without a daemon, and without a keeper: whoever comes goes on with the plan."""
    slow.run("c1", *FAILING, labels=restart_labels("always"))
    slow.wait("c1")
    wait_until(lambda: is_planned(slow, "c1"), what="the plan")
    due = slow.shim("c1").next_restart_at
    pid = slow.shim("c1").pid
    slow.kill()
    os.kill(pid, signal.SIGKILL)
    slow.start()
    wait_until(lambda: slow.shim("c1").health == shimd.HEALTH_SERVING, deadline_s=20, what="a shim that serves")
    wait_until(lambda: is_planned(slow, "c1"), what="the plan")
    assert slow.shim("c1").next_restart_at == due
    assert slow.shim("c1").pid != pid


def test_a_shim_that_is_lost_for_good_leaves_it_to_the_daemon(box: DaemonBox) -> None:
    """Nothing tells a successor of the container: the daemon makes a new task, as for shims that restart nothing."""
    pid = box.run("c1", "sleep", "1000", labels=restart_labels("always"))
    first, shim_pid = box.shim("c1").incarnation, box.shim("c1").pid
    box.kill()
    box.lose("c1", shim_pid, pid)
    box.start()
    wait_until(lambda: is_running_again(box, "c1", pid), deadline_s=30, what="the restart")
    assert box.shim("c1").incarnation.partition(".")[0] != first
    assert box.shim("c1").restarts == 1
    box.signal("c1")
    wait_until(lambda: box.shim("c1").restarts == 2, what="the next restart, by its shim")
    assert runs([box.shim("c1")]) == [2]  # type: ignore[list-item]  # counted on


def test_the_next_run_has_the_spec_that_is_on_record_by_then(box: DaemonBox) -> None:
    """As with `shimctl update`: limits of a running container are in its next run too."""
    box.run("c1", "sh", "-c", "echo old; exec sleep 1000", labels=restart_labels("always"))
    wait_until(lambda: box.output("c1") == "old\n", what="its output")
    spec = box.spec("c1", ["sh", "-c", "echo new; exec sleep 1000"])
    changed = containers.Container(id="c1")
    changed.spec.CopyFrom(
        wkt.any_of("types.containerd.io/opencontainers/runtime-spec/1/Spec", json.dumps(spec).encode())
    )
    request = containers.UpdateContainerRequest(container=changed)
    request.update_mask.paths.append("spec")
    box.call(CONTAINERS, "Update", request, ns=NAMESPACE)
    box.signal("c1")
    wait_until(lambda: box.output("c1") == "old\nnew\n", what="the output of the next run")


@pytest.mark.parametrize("point", ["ingest.before_commit", "ingest.committed", "ingest.acknowledged"])
def test_killed_around_the_commit_of_a_run_it_knows_each_once(point: str) -> None:
    """At the seventh batch: in the middle of the restarts."""
    with DaemonBox(environ={"SHIMD_FAULTS": f"{point}=kill@7", "SHIMD_FAULTS_ARMED": ARMED}) as box:
        box.environ.clear()
        box.run("c1", *FIVE, labels=restart_labels("always"))
        wait_until(lambda: box.daemon is not None and box.daemon.poll() is not None, what=f"{point} to be reached")
        assert box.gone() == -signal.SIGKILL
        box.start()
        wait_until(lambda: box.shim("c1").restarts == 5, deadline_s=30, what="five restarts")
        wait_until(lambda: is_running_again(box, "c1", 0), what="the run that stays")

        assert runs(box.exits("c1")) == [0, 1, 2, 3, 4]
        assert shimd_topics(box) == ["/shimd/restarting"] * 5
        assert labels_of(box, "c1")[restart.COUNT_LABEL] == "5"
