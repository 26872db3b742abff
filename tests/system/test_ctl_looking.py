"""ps, inspect, logs, top, stats, events, version and daemon info on real containers."""

import json
import os
import signal
import subprocess
from typing import Any

import pytest

from tests.support.ctlbox import CtlBox
from tests.support.daemonbox import CONTAINERS
from tests.support.pty import Person
from tests.support.shimctl import finish, lines, read_until
from tests.support.waiting import wait_until
from ttrpc.api import containers


@pytest.fixture(scope="module")
def box(ctlbox: CtlBox) -> CtlBox:
    """Three that run on, one that has ended with 42, one that was killed."""
    busy = ("--label", "team=a", "--memory", "64m", "--cpus", "0.1")  # it runs beside every test here
    ctlbox.detached("web", "sh", "-c", "while :; do :; done", options=busy)
    ctlbox.detached("idle", "sleep", "1000", options=("--label", "team=b"))
    ctlbox.detached("frozen", "sleep", "1000")
    ctlbox.ctl.output("pause", "frozen")
    ctlbox.run("done", "--", "sh", "-c", "echo one; sleep 0.1; echo two >&2; sleep 0.1; echo three; exit 42")
    ctlbox.detached("shot", "sleep", "1000")
    ctlbox.ctl.output("kill", "shot")
    ctlbox.ctl.output("wait", "shot", code=137)
    return ctlbox


def loaded(box: CtlBox, *words: str) -> Any:
    return json.loads(box.ctl.output(*words))


# --- ps


def test_ps_shows_what_runs_and_with_a_everything(box: CtlBox) -> None:
    assert set(box.ctl.output("ps", "-q").split()) == {"web", "idle", "frozen"}
    assert box.ids() == {"web", "idle", "frozen", "done", "shot"}
    text = box.ctl.output("ps", "--all")

    assert lines(text)[0].split() == ["ID", "COMMAND", "CREATED", "STATUS", "PID"]
    assert "Exited (42)" in text
    assert "Exited (137)" in text
    assert "(paused)" in text


def test_ps_lists_more_than_fits_one_message(box: CtlBox) -> None:
    """Records of 100 KiB: the list of them is longer than ttrpc's 4 MiB."""
    record = box.daemon.call(CONTAINERS, "Get", containers.GetContainerRequest(id="idle"), ns=box.namespace).container
    record.labels.update({f"long{number}": "x" * 4000 for number in range(25)})
    names = {f"big{number}" for number in range(45)}
    for record.id in sorted(names):
        request = containers.CreateContainerRequest(container=record)
        box.daemon.call(CONTAINERS, "Create", request, ns=box.namespace)
    try:
        assert box.ids() >= names
    finally:
        for name in names:
            request = containers.DeleteContainerRequest(id=name)
            box.daemon.call(CONTAINERS, "Delete", request, ns=box.namespace)


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (["status=exited"], {"done", "shot"}),
        (["status=paused"], {"frozen"}),
        (["status=running", "status=paused"], {"web", "idle", "frozen"}),
        (["label=team"], {"web", "idle"}),
        (["label=team=b"], {"idle"}),
        (["exited=42"], {"done"}),
        (["name=id"], {"idle"}),
    ],
)
def test_ps_filters(box: CtlBox, filters: list[str], ids: set[str]) -> None:
    words = [word for text in filters for word in ("--filter", text)]

    assert ids == set(box.ctl.output("ps", "--quiet", *words).split())


def test_ps_as_json(box: CtlBox) -> None:
    found = {each["id"]: each for each in loaded(box, "ps", "-a", "--json")}

    assert found == {each["id"]: each for each in loaded(box, "ps", "-a", "--format", "json")}
    assert found["done"]["exit_code"] == 42
    assert found["web"]["state"] == "running"
    assert found["web"]["labels"]["team"] == "a"
    assert found["web"]["pid"] == int(box.ctl.output("inspect", "--part", "task.pid", "web"))


def test_ps_cuts_to_the_terminal_and_not_when_told(box: CtlBox) -> None:
    def shown(*words: str) -> list[bytes]:
        with Person(box.ctl.argv("ps", "-a", *words), {**box.ctl.env, "NO_COLOR": "1"}, columns=70) as person:
            text = person.sees(b"shot")
            person.code()
        return text.replace(b"\r", b"").split(b"\n")

    long = "sh -c 'echo one; sleep 0.1; echo two >&2; sleep 0.1; echo three; exit 42'"
    assert max(len(line.decode()) for line in shown()) <= 70
    assert long in box.ctl.output("ps", "-a", "--no-trunc")


def test_colour_only_for_a_terminal(box: CtlBox) -> None:
    assert "\x1b[" not in box.ctl.output("ps", "-a")
    with Person(box.ctl.argv("ps"), {**box.ctl.env, "TERM": "xterm"}, columns=120) as person:
        person.sees(b"\x1b[32mUp")
        assert person.code() == 0


def test_a_reader_that_has_seen_enough(box: CtlBox) -> None:
    """`shimctl inspect … | head -1` ends quietly."""
    process = box.ctl.start("inspect", "web", "idle", "done")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    code, _, err = finish(process)

    assert (code, err) == (141, b"")


# --- inspect


def test_inspect_has_the_record_the_task_the_exits_and_the_shim(box: CtlBox) -> None:
    running, ended = loaded(box, "inspect", "web", "done")

    assert running["container"]["spec"]["process"]["args"][0] == "sh"
    assert running["task"]["status"] == "running"
    assert running["shim"]["health"] == "serving"
    assert running["exits"] == []
    assert [(each["exit_code"], each["source"]) for each in ended["exits"]] == [(42, "waitid")]


def test_inspect_of_a_part(box: CtlBox) -> None:
    assert box.ctl.output("inspect", "--part", "exits.-1.code", "done") == "42\n"
    assert box.ctl.output("inspect", "--part", "container.labels.team", "web") == "a\n"
    done = box.ctl.run("inspect", "--part", "exits.-1.code", "web", "done")
    assert (done.returncode, done.stdout) == (1, "42\n")
    assert "web: nothing is at '-1.code' there; known: nothing" in done.stderr


def test_inspect_of_one_that_is_not_there_shows_the_others(box: CtlBox) -> None:
    done = box.ctl.run("inspect", "missing", "web")

    assert done.returncode == 1
    assert [each["container"]["id"] for each in json.loads(done.stdout)] == ["web"]


# --- logs


def test_logs_keep_the_streams_apart(box: CtlBox) -> None:
    done = box.ctl.run("logs", "done")

    assert (done.stdout, done.stderr) == ("one\nthree\n", "two\n")
    assert box.ctl.output("logs", "--stream", "stdout", "done") == "one\nthree\n"
    assert box.ctl.run("logs", "--stream", "stderr", "done").stderr == "two\n"


def test_logs_tail_since_and_until(box: CtlBox) -> None:
    records = [json.loads(line) for line in lines(box.ctl.output("logs", "--json", "done"))]
    assert [each["log"] for each in records] == ["one\n", "two\n", "three\n"]
    assert [each["stream"] for each in records] == ["stdout", "stderr", "stdout"]

    assert box.ctl.output("logs", "--tail", "1", "done") == "three\n"
    assert box.ctl.output("logs", "--tail", "all", "done") == "one\nthree\n"
    assert box.ctl.output("logs", "--since", records[2]["time"], "done") == "three\n"
    assert box.ctl.output("logs", "--since", "1h", "done") == "one\nthree\n"
    assert box.ctl.output("logs", "--since", "4102444800", "done") == ""
    assert box.ctl.output("logs", "--until", records[0]["time"], "done") == "one\n"
    assert box.ctl.run("logs", "--since", "yesterday", "done").returncode == 2


def test_logs_with_times(box: CtlBox) -> None:
    first = lines(box.ctl.output("logs", "--timestamps", "done"))[0]

    assert first.endswith("Z one")
    assert first == lines(box.ctl.output("logs", "-t", "done"))[0]


def test_logs_follow_until_the_end(box: CtlBox) -> None:
    box.detached("talker", "sh", "-c", "trap 'echo bye; exit' TERM; echo hi; while :; do sleep 0.05; done")
    try:
        follower = box.ctl.start("logs", "-f", "talker")
        assert follower.stdout is not None
        read_until(follower.stdout.fileno(), b"hi\n")
        box.ctl.output("stop", "talker")
        assert finish(follower)[:2] == (0, b"bye\n")
    finally:
        box.remove("talker")


def test_logs_follow_a_container_that_is_restarted(box: CtlBox) -> None:
    box.detached("again", "sh", "-c", "echo run; exit 1", options=("--restart", "on-failure:2"))
    try:
        assert box.ctl.output("logs", "--follow", "again") == "run\n" * 3
    finally:
        box.remove("again")


def test_logs_rotate_by_size_and_keep_their_order(box: CtlBox) -> None:
    options = ("--log-opt", "max-size=8k", "--log-opt", "max-file=3")
    box.run(*options, "wordy", "--", "sh", "-c", "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done")
    try:
        assert len(os.listdir(box.log_folder("wordy"))) == 3
        numbers = [int(line.split()[1]) for line in lines(box.ctl.output("logs", "wordy"))]
        assert numbers == list(range(numbers[0], 500))
        assert 0 < numbers[0] < 500
    finally:
        box.remove("wordy")


def test_a_raw_log(box: CtlBox) -> None:
    box.run("--log-driver", "raw", "raw", "--", "sh", "-c", "printf 'no\\0newline'")
    try:
        assert box.ctl.output("logs", "raw") == "no\0newline"
    finally:
        box.remove("raw")


def test_no_log_is_told(box: CtlBox) -> None:
    box.detached("silent", "sleep", "100", options=("--log-driver", "none"))
    try:
        done = box.ctl.run("logs", "silent")
        assert done.returncode == 1
        assert done.stderr.startswith("shimctl: ")
    finally:
        box.remove("silent")


def test_logs_without_a_task_come_from_the_files(box: CtlBox) -> None:
    """Somebody deleted the task (another client may); the record and its log are still there."""
    from ttrpc.api import tasks

    box.run("orphan", "--", "sh", "-c", "echo a; echo b >&2")
    request = tasks.DeleteTaskRequest(container_id="orphan")
    box.daemon.tasks("Delete", request, ns=box.namespace)
    try:
        assert (box.ctl.run("logs", "orphan").stdout, box.ctl.run("logs", "orphan").stderr) == ("a\n", "b\n")
        assert box.ctl.output("logs", "--tail", "1", "--stream", "stdout", "orphan") == ""
        assert "Exited (0)" in box.ctl.output("ps", "-a", "--filter", "name=orphan")
        assert loaded(box, "inspect", "orphan")[0]["task"] is None
    finally:
        box.remove("orphan")


# --- top and stats


def test_top_shows_processes_inside_and_outside(box: CtlBox) -> None:
    (found,) = loaded(box, "top", "--json", "idle")

    assert found["command"] == "sleep 1000"
    assert found["inner_pid"] == 1
    assert found["user"] == "root"
    assert os.path.exists(f"/proc/{found['pid']}")
    assert lines(box.ctl.output("top", "--no-trunc", "idle"))[1].split()[-2:] == ["sleep", "1000"]
    assert box.ctl.run("top", "done").returncode == 1


def test_stats_once(box: CtlBox) -> None:
    def seen() -> Any:
        """A moment in which the busy one got some of what it may have."""
        found = {each["id"]: each for each in loaded(box, "stats", "--no-stream", "--json")}
        assert set(found) >= {"web", "idle"}
        return found if found["web"]["cpu_percent"] > found["idle"]["cpu_percent"] + 0.5 else None

    found = wait_until(seen, what="the busy container to be busier than the idle one")
    assert found["web"]["cpu_percent"] < 50
    assert found["web"]["memory_limit"] == 64 << 20
    assert 0 < found["idle"]["memory_bytes"] < 64 << 20
    assert found["idle"]["pids"] == 1
    table = box.ctl.output("stats", "--no-stream", "web")
    assert lines(table)[0].startswith("ID")
    assert "/ 64MiB" in lines(table)[1]
    assert len(lines(table)) == 2


def test_stats_of_some_that_are_not_there_shows_the_others(box: CtlBox) -> None:
    done = box.ctl.run("stats", "--no-stream", "missing", "idle")
    assert (done.returncode, [line.split()[0] for line in lines(done.stdout)]) == (1, ["ID", "idle"])
    assert "no container 'missing'" in done.stderr
    done = box.ctl.run("stats", "missing", "nor-this")  # nothing to look at: it ends
    assert (done.returncode, done.stdout, done.stderr.count("no container")) == (1, "", 2)


def test_stats_live_as_json_lines(box: CtlBox) -> None:
    process = box.ctl.start("stats", "--json", "--interval", "0.1", "idle")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b'}\n{"id": "idle"')
    process.send_signal(signal.SIGINT)

    assert finish(process)[0] == 130


def test_stats_live_redraws_a_terminal(box: CtlBox) -> None:
    with Person(box.ctl.argv("stats", "--interval", "100ms"), box.ctl.env, columns=120) as person:
        for _ in range(2):
            person.sees(b"\x1b[H")
        person.types(b"\x03")
        assert person.code() == 130


# --- events


def test_events_since_a_number_are_told_once_and_in_order(box: CtlBox) -> None:
    everything = [json.loads(line) for line in lines(box.ctl.output("events", "--since", "0", "--json"))]
    numbers = [each["seq"] for each in everything]

    assert numbers == sorted(set(numbers))
    later = [json.loads(line)["seq"] for line in lines(box.ctl.output("events", "--since", str(numbers[4]), "--json"))]
    assert later == numbers[5:]


def test_events_of_an_exit_have_code_and_source(box: CtlBox) -> None:
    words = ("events", "--since", "0", "--filter", "topic==/tasks/exit,event.container_id==done")

    assert "code=42 source=waitid" in box.ctl.output(*words)
    (found,) = [json.loads(line) for line in lines(box.ctl.output(*words, "--json"))]
    assert found["exit"]["exit_code"] == 42
    assert found["event"]["exit_status"] == 42


def test_events_follow_what_is_to_come(box: CtlBox) -> None:
    process = box.ctl.start("events", "--filter", "topic==/tasks/exit")
    assert process.stdout is not None
    wait_until(lambda: box.run("--rm", "--", "true").returncode == 0 and _has_come(process), what="an exit event")
    process.send_signal(signal.SIGINT)

    assert finish(process)[0] == 130


def _has_come(process: "subprocess.Popen[bytes]") -> bool:
    import select

    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0)[0])


def test_events_since_and_follow(box: CtlBox) -> None:
    newest = json.loads(lines(box.ctl.output("events", "--since", "0", "--json"))[-1])["seq"]
    process = box.ctl.start("events", "--since", str(newest - 1), "--follow", "--json")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), f'"seq": {newest},'.encode())
    box.run("--rm", "--", "true")
    read_until(process.stdout.fileno(), b"/tasks/exit")
    process.send_signal(signal.SIGINT)

    assert finish(process)[0] == 130


def test_events_of_every_namespace(box: CtlBox) -> None:
    elsewhere = ("-n", "elsewhere", "events", "--since", "0")

    assert box.ctl.output(*elsewhere) == ""
    assert box.namespace in box.ctl.output(*elsewhere, "--all-namespaces")
    assert box.namespace in box.ctl.output(*elsewhere, "-A")


def test_a_wrong_filter_is_told_with_the_place(box: CtlBox) -> None:
    done = box.ctl.run("events", "--since", "0", "--filter", "topic==")
    again = box.ctl.run("events", "--since", "0", "--filter", "=x")

    assert done.returncode == 0
    assert again.returncode == 1
    assert "filter" in again.stderr


# --- the daemon


def test_version(box: CtlBox) -> None:
    found = loaded(box, "version", "--json")

    assert found["client"]["version"] == found["server"]["version"]
    assert lines(box.ctl.output("--version")) == lines(box.ctl.output("version"))
    done = box.ctl.run("version", "--address", "/nowhere/x")
    assert done.returncode == 1
    assert done.stdout.startswith("shimctl ")


def test_daemon_info(box: CtlBox) -> None:
    found = loaded(box, "daemon", "info", "--json")
    mine = [each for each in found["shims"] if each["namespace"] == box.namespace]

    assert found["pid"] == box.daemon.daemon.pid  # type: ignore[union-attr]
    assert {each["container_id"] for each in mine} == box.ids()
    assert {each["health"] for each in mine} == {"serving"}
    assert found["process"]["fds"] > 3
    assert all(each["process"]["pss_bytes"] > 0 for each in mine)
    told = box.ctl.output("daemon", "info")
    assert f"root {box.daemon.root}" in told
    assert f"disk of {box.daemon.root}: " in told


def test_namespaces_are_apart(box: CtlBox) -> None:
    assert box.ctl.output("-n", "elsewhere", "ps", "-a", "-q") == ""
    assert box.ctl.output("ps", "-a", "-q", "--namespace", "elsewhere") == ""
    assert box.ctl.run("ps", "-q", env={"SHIMD_NAMESPACE": "ignored-by-the-option"}).stdout != ""
