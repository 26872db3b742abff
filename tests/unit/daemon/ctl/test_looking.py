"""ps, stats, events, inspect and update, by what they make of the daemon's answers."""

import argparse
import json
import os
import subprocess
from typing import Any

import pytest

from daemon.ctl import describe, events, host, ps, stats, update
from daemon.ctl.errors import CtlError, UsageError
from daemon.ctl.processes import Process
from daemon.spec_parse import SpecError
from ttrpc.api import cgroups1, cgroups2, containers, descriptor, process, shim, shimd, wkt
from ttrpc.api import events as topics

NS = 1_000_000_000
NOW = 1_800_000_000 * NS


# --- ps


def row(status: int | None, *, last: Any = None, health: int = 0, restart_at: int | None = None, **task: Any) -> ps.Row:
    spec = wkt.any_of("x", json.dumps({"process": {"args": ["sleep", "1 0"]}}).encode())
    record = containers.Container(id="web", labels={"team": "a"}, spec=spec, created_at=wkt.timestamp(NOW - 60 * NS))
    record.runtime.name = "r"
    found = None if status is None else process.Process(id="web", status=status, **task)
    told = shimd.ShimRecord(container_id="web", health=health, restarts=2)
    if restart_at is not None:
        told.next_restart_at.CopyFrom(wkt.timestamp(restart_at))
    return ps.Row(record, found, told, last)


def ended(**how: Any) -> Any:
    return shim.ExitRecord(container_id="web", exited_at=wkt.timestamp(NOW - 5 * NS), **how)


@pytest.mark.parametrize(
    ("made", "state", "words"),
    [
        (row(1), "created", "Created"),
        (row(2, pid=0), "running", "Up"),
        (row(4), "paused", "Up (paused)"),
        (row(3, exit_status=42, exited_at=wkt.timestamp(NOW - 5 * NS)), "exited", "Exited (42) 5 seconds ago"),
        (row(3, last=ended(signal=9)), "exited", "Exited (137) 5 seconds ago"),
        (row(3, exit_status=255, last=ended()), "exited", "Exited (unknown) 5 seconds ago"),
        (row(None), "no task", "No task"),
        (row(None, last=ended(code=1)), "exited", "Exited (1) 5 seconds ago"),
        (row(0, health=3), "unknown", "Unknown (shim unreachable)"),
        (row(2, health=3), "running", "Up (shim unreachable)"),
        (
            row(3, exit_status=1, restart_at=NOW, exited_at=wkt.timestamp(NOW - NS)),
            "restarting",
            "Restarting (1) 1 second ago",
        ),
    ],
)
def test_a_state_in_words(made: ps.Row, state: str, words: str) -> None:
    """A status nobody knows is never shown as a number."""
    assert (state, words) == (made.state, made.status(NOW))


def test_uptime_is_the_kernel_s_own() -> None:
    up_s = ps.uptime_s(os.getpid())

    assert up_s is not None
    assert 0 <= up_s < 86400
    assert ps.uptime_s(2**30) is None


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ([], True),
        (["status=running"], True),
        (["status=exited"], False),
        (["status=exited", "status=running"], True),
        (["label=team"], True),
        (["label=team=a", "label=other"], False),
        (["name=we", "status=running"], True),
        (["id=x"], False),
        (["runtime=r"], True),
    ],
)
def test_filters(filters: list[str], passes: bool) -> None:
    assert ps.matches(row(2), ps.parse_filters(filters)) is passes


def test_exited_filters_by_code() -> None:
    assert ps.matches(row(3, exit_status=42), ps.parse_filters(["exited=42"]))
    assert not ps.matches(row(3, exit_status=1), ps.parse_filters(["exited=42"]))


@pytest.mark.parametrize("text", ["colour=red", "status", "status=dancing"])
def test_wrong_filters_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        ps.parse_filters([text])


def test_ps_json_says_null_for_what_is_not_there() -> None:
    made = row(2, pid=5).as_json()

    assert made["pid"] == 5
    assert made["exit_code"] is None
    assert made["command"] == ["sleep", "1 0"]
    assert made["labels"] == {"team": "a"}


# --- stats


def metric(data: Any, at_s: float) -> Any:
    return descriptor.Metric(id="web", timestamp=wkt.timestamp(int(at_s * NS)), data=wkt.pack(data))


def v1(cpu_s: float) -> Any:
    made = cgroups1.Metrics(pids=cgroups1.PidsStat(current=3, limit=10))
    made.cpu.usage.total = int(cpu_s * NS)
    made.memory.usage.usage, made.memory.usage.limit, made.memory.total_inactive_file = 5 << 20, 64 << 20, 1 << 20
    made.blkio.io_service_bytes_recursive.add(op="Read", value=100)
    made.blkio.io_service_bytes_recursive.add(op="Write", value=7)
    made.blkio.io_service_bytes_recursive.add(op="Total", value=107)
    return made


def v2(cpu_s: float) -> Any:
    made = cgroups2.Metrics(pids=cgroups2.PidsStat(current=3, limit=2**64 - 1))
    made.cpu.usage_usec = int(cpu_s * 1_000_000)
    made.memory.usage, made.memory.usage_limit, made.memory.inactive_file = 5 << 20, 2**64 - 1, 1 << 20
    made.io.usage.add(rbytes=60, wbytes=7)
    made.io.usage.add(rbytes=40)
    return made


@pytest.mark.parametrize("of", [v1, v2])
def test_both_cgroup_versions_come_to_the_same_counters(of: Any) -> None:
    before, now = stats.usage_of(metric(of(1.0), 10), 0), stats.usage_of(metric(of(2.0), 12), 0)
    assert before is not None
    assert now is not None

    made = stats.as_json(now, before)
    assert made["cpu_percent"] == 50.0
    assert made["memory_bytes"] == 4 << 20
    assert (made["read_bytes"], made["written_bytes"], made["pids"]) == (100, 7, 3)
    assert made["memory_limit"] == (64 << 20 if of is v1 else None)


def test_the_table_shows_busy_ones_first_and_the_host_s_memory_where_there_is_no_limit() -> None:
    now = stats.usage_of(metric(v2(2.0), 12), 0)
    before = stats.usage_of(metric(v2(1.0), 10), 0)
    idle = stats.Usage("idle", 12 * NS)
    assert now is not None
    assert before is not None

    lines = stats.table_lines({"idle": idle, "web": now}, {"web": before}, None)

    assert lines[1].split()[:3] == ["web", "50.00%", "4MiB"]
    assert lines[2].split()[:2] == ["idle", "--"]


def test_unknown_metrics_are_left_out() -> None:
    assert stats.usage_of(descriptor.Metric(id="web", data=wkt.any_of("some.Other", b"")), 0) is None


# --- events


def test_an_exit_is_told_with_its_source() -> None:
    record = shimd.EventRecord(seq=7, namespace="default", topic="/tasks/exit", timestamp=wkt.timestamp(NOW))
    record.event.CopyFrom(wkt.pack(topics.TaskExit(container_id="web", id="web", pid=3, exit_status=137)))
    record.exit.CopyFrom(shim.ExitRecord(container_id="web", signal=9, source=shim.EXIT_SOURCE_PIDFD, oom=True))

    assert events.as_line(record) == (
        "     7 2027-01-15T08:00:00.000000000Z default /tasks/exit"
        " container_id=web id=web pid=3 signal=9 source=pidfd oom=yes"
    )
    made = events.as_json(record)
    assert (made["seq"], made["exit"]["source"], made["exit"]["exit_code"]) == (7, "pidfd", 137)


def test_an_unknown_status_is_no_number_in_events_either() -> None:
    record = shimd.EventRecord(seq=7, topic="/tasks/exit", timestamp=wkt.timestamp(NOW))
    record.event.CopyFrom(wkt.pack(topics.TaskExit(container_id="web", id="web", exit_status=255)))
    record.exit.CopyFrom(shim.ExitRecord(container_id="web"))

    assert "code=unknown source=unknown" in events.as_line(record)
    assert events.as_json(record)["exit"]["exit_code"] is None


def test_a_gap_is_told() -> None:
    assert events.as_json(shimd.EventRecord(seq=9, gap=True)) == {"seq": 9, "gap": True}


# --- inspect


def test_parts_are_found_by_path_also_with_dots_in_keys() -> None:
    found = {"container": {"labels": {"a.b/c": "x"}}, "exits": [{"code": 1}, {"code": 2}]}

    assert describe._part(found, "container.labels.a.b/c") == "x"
    assert describe._part(found, "exits.-1.code") == 2
    with pytest.raises(CtlError, match="known: container, exits"):
        describe._part(found, "nothing")
    with pytest.raises(CtlError, match="known: 0 to 1"):
        describe._part(found, "exits.5")


# --- top


def test_a_process_is_read_from_proc() -> None:
    made = Process(os.getpid(), "e")

    assert made.ppid == os.getppid()
    assert made.uid == os.geteuid()
    assert made.inner_pid == os.getpid()
    assert made.rss_bytes > 1 << 20
    assert "python" in made.command
    assert (made.fds or 0) > 2
    assert 0 <= made.cpu_percent < 100 * made.threads + 100
    assert made.state in "RS"


def test_a_zombie_has_a_name_and_not_more() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        made = Process(child.pid, "")
    assert (made.state, made.command, made.fds, made.read_bytes) == ("Z", "[true]", None, None)


# --- the host


def test_the_host_s_figures_and_a_process_s() -> None:
    """Room of each directory once; what is not there is left out."""
    found = host.host_as_json(["/", "/", "/no/such/directory"])
    assert found["memory"]["total_bytes"] >= found["memory"]["available_bytes"] > 0
    assert [disk["directory"] for disk in found["disks"]] == ["/"]
    mine = host.process_as_json(os.getpid())
    assert mine is not None
    assert mine["rss_bytes"] >= mine["pss_bytes"] > 0
    assert 2 < mine["fds"] < mine["fds_limit"]
    assert host.process_as_json(0x7FFFFFFF) is None
    told = host.lines(found, mine, [mine, mine])
    assert len(told) == 4
    found["disks"][0]["used_percent"] = 95
    assert "nearly full" in host.lines(found, None, [])[1]


# --- update


def limits(**given: Any) -> argparse.Namespace:
    names = ("memory", "memory_swap", "cpus", "cpu_shares", "cpuset_cpus", "pids_limit", "restart")
    return argparse.Namespace(**{name: given.get(name) for name in names}, label=given.get("label", []))


@pytest.mark.parametrize(
    ("given", "resources"),
    [
        ({"memory": "64m"}, {"memory": {"limit": 64 << 20}}),
        ({"memory": "64m", "memory_swap": "128m"}, {"memory": {"limit": 64 << 20, "swap": 128 << 20}}),
        ({"cpus": "0.5", "cpu_shares": 2}, {"cpu": {"quota": 50000, "period": 100000, "shares": 2}}),
        ({"cpuset_cpus": "0"}, {"cpu": {"cpus": "0"}}),
        ({"pids_limit": 7}, {"pids": {"limit": 7}}),
        ({"pids_limit": 0}, {"pids": {"limit": -1}}),
        ({}, {}),
    ],
)
def test_limits_become_resources(given: dict[str, Any], resources: dict[str, Any]) -> None:
    assert resources == update.resources_of(limits(**given))


def test_a_limit_no_container_lives_with_is_refused() -> None:
    with pytest.raises(SpecError, match="the least is 6m"):
        update.resources_of(limits(memory="4m"))


def test_new_limits_leave_the_others() -> None:
    old = {"memory": {"limit": 1, "swap": 2}, "devices": []}

    assert update.merged(old, {"memory": {"limit": 9}, "cpu": {"shares": 3}}) == {
        "memory": {"limit": 9, "swap": 2},
        "devices": [],
        "cpu": {"shares": 3},
    }


def test_restart_and_labels_become_labels() -> None:
    assert update.labels_of(limits(restart="always", label=["a=b"])) == {
        "a": "b",
        "containerd.io/restart.policy": "always",
        "containerd.io/restart.status": "running",
    }
    with pytest.raises(UsageError):
        update.labels_of(limits(restart="sometimes"))
