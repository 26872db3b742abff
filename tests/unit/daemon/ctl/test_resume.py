"""After a lost reply: look, then decide. A scripted daemon answers call by call."""

from collections.abc import Callable
from typing import Any

import pytest

from daemon.ctl import resume
from daemon.ctl.errors import CtlError, DaemonGone
from ttrpc.api import containers, process, tasks
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.status import Code

Step = tuple[str, Any]


class ScriptedDaemon:
    """Expects the named calls in this order; an exception among the answers is raised."""

    namespace = "default"

    def __init__(self, *script: Step) -> None:
        self.script = list(script)

    def attempt(self, _service: str, method: str, _request: Any, **_: Any) -> Any:
        expected, answer = self.script.pop(0)
        assert expected == method
        if isinstance(answer, Exception):
            raise answer
        return answer

    call = attempt


LOST = ConnectionLost("gone")
MISSING = StatusError(Code.NOT_FOUND, "not found")
EXISTS = StatusError(Code.ALREADY_EXISTS, "exists")
REFUSED = StatusError(Code.UNKNOWN, "cannot start a running process")


def state(status: int, pid: int = 7) -> Any:
    return tasks.GetResponse(process=process.Process(id="web", pid=pid, status=status))


def record(request: str) -> Any:
    return containers.Container(id="web", labels={"shimd.io/request": request})


def got(request: str) -> Any:
    return containers.GetContainerResponse(container=record(request))


def make_record(daemon: Any) -> Any:
    return resume.create_container(daemon, record("mine")).id


def make_task(daemon: Any) -> Any:
    return resume.create_task(daemon, tasks.CreateTaskRequest(container_id="web"))


def start(daemon: Any) -> Any:
    return resume.start(daemon, "web")


def kill(number: int) -> Callable[[Any], Any]:
    return lambda daemon: resume.kill(daemon, "web", number)


def add_exec(daemon: Any) -> Any:
    return resume.add_exec(daemon, tasks.ExecProcessRequest(container_id="web", exec_id="e"))


def pause(daemon: Any) -> Any:
    return resume.switch(daemon, "web", "Pause", process.PAUSED)


def remove_record(daemon: Any) -> Any:
    return resume.delete_container(daemon, "web")


MADE = containers.CreateContainerResponse(container=record("mine"))
PID = tasks.CreateTaskResponse(pid=9)
STARTED = tasks.StartResponse(pid=9)

RESUMED = [
    ("nothing lost", make_record, [("Create", MADE)], "web"),
    ("the record was made", make_record, [("Create", LOST), ("Get", got("mine"))], "web"),
    ("the record was not made", make_record, [("Create", LOST), ("Get", MISSING), ("Create", MADE)], "web"),
    (
        "the record was made while we asked again",
        make_record,
        [("Create", LOST), ("Get", MISSING), ("Create", EXISTS), ("Get", got("mine"))],
        "web",
    ),
    ("the task was made", make_task, [("Create", LOST), ("Get", state(process.CREATED))], 7),
    ("recovery discarded the create", make_task, [("Create", LOST), ("Get", MISSING), ("Create", PID)], 9),
    ("it was started", start, [("Start", LOST), ("Get", state(process.RUNNING))], 7),
    ("it was started and has ended", start, [("Start", LOST), ("Get", state(process.STOPPED))], 7),
    ("it was not started", start, [("Start", LOST), ("Get", state(process.CREATED)), ("Start", STARTED)], 9),
    (
        "it was being started",
        start,
        [("Start", LOST), ("Get", state(process.CREATED)), ("Start", REFUSED), ("Get", state(process.RUNNING))],
        7,
    ),
    ("lost twice", start, [("Start", LOST), ("Get", state(process.CREATED))] * 2 + [("Start", STARTED)], 9),
    ("the exec is registered", add_exec, [("Exec", LOST), ("Get", state(process.CREATED))], None),
    ("the exec is not", add_exec, [("Exec", LOST), ("Get", MISSING), ("Exec", tasks.GetResponse())], None),
    ("it is paused", pause, [("Pause", LOST), ("Get", state(process.PAUSED))], None),
    ("it is not", pause, [("Pause", LOST), ("Get", state(process.RUNNING)), ("Pause", PID)], None),
    ("killed, and over", kill(15), [("Kill", LOST), ("Get", state(process.STOPPED))], None),
    ("killed, and gone", kill(1), [("Kill", LOST), ("Get", MISSING)], None),
    ("a second TERM does no harm", kill(15), [("Kill", LOST), ("Get", state(process.RUNNING)), ("Kill", PID)], None),
    (
        "it has ended of the first, which is not on record yet",
        kill(9),
        [("Kill", LOST), ("Get", state(process.RUNNING)), ("Kill", MISSING)],
        None,
    ),
    ("deleted by the lost call", remove_record, [("Delete", LOST), ("Delete", MISSING)], None),
    ("was never there", remove_record, [("Delete", MISSING)], None),
]


@pytest.mark.parametrize(("act", "script", "answer"), [row[1:] for row in RESUMED], ids=[row[0] for row in RESUMED])
def test_a_lost_reply_is_resumed(act: Callable[[Any], Any], script: list[Step], answer: Any) -> None:
    daemon = ScriptedDaemon(*script)

    assert answer == act(daemon)
    assert daemon.script == []


THEIRS = ("Get", got("theirs"))
OLD = ("Get", state(process.STOPPED))
REFUSALS = [
    ("somebody else's record", make_record, [("Create", LOST), THEIRS, ("Create", EXISTS), THEIRS], StatusError),
    ("exists without a loss", make_record, [("Create", EXISTS)], StatusError),
    ("a task of old", make_task, [("Create", LOST), OLD, ("Create", EXISTS), OLD], StatusError),
    ("vanished", start, [("Start", LOST), ("Get", MISSING)], CtlError),
    ("nothing to kill", kill(9), [("Kill", MISSING)], StatusError),
    ("a second USR1 might do harm", kill(10), [("Kill", LOST), ("Get", state(process.RUNNING))], CtlError),
    ("dies of it each time", start, [("Start", LOST), ("Get", state(process.CREATED))] * 8, DaemonGone),
    ("dies of deleting", remove_record, [("Delete", LOST)] * 8, DaemonGone),
]


@pytest.mark.parametrize(("act", "script", "error"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_what_cannot_be_resumed_is_told(act: Callable[[Any], Any], script: list[Step], error: type[Exception]) -> None:
    daemon = ScriptedDaemon(*script)

    with pytest.raises(error):
        act(daemon)
    assert daemon.script == []


def test_a_missing_container_is_told_with_its_namespace() -> None:
    with pytest.raises(CtlError, match="in namespace 'default'"):
        resume.require_container(ScriptedDaemon(("Get", MISSING)), "web")  # type: ignore[arg-type]
