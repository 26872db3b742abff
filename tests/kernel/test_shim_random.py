"""Many clients asking anything at any time of one shim: every call is answered, and the events make sense."""

import json
import random
from typing import Any

import pytest

from tests.support.shimbox import TASK, ShimBox, make_process, running
from ttrpc.api import task, wkt
from ttrpc.errors import StatusError
from ttrpc.status import Code

CALLS = 150
EXECS = ("a", "b", "c", "d")
PROGRAMS = (["true"], ["sh", "-c", "exit 7"], ["sleep", "1000"], ["no-such-program"])
# What a request in the wrong state, or too late, may be answered; anything else is a bug.
EXPECTED = {Code.UNKNOWN, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION}


def some_request(dice: random.Random) -> tuple[str, Any]:
    """Any request, weighted so that execs come and go; init is killed rarely."""
    exec_id = dice.choice(EXECS)
    method = dice.choice(
        ["Exec", "Start", "Start", "Kill", "Delete", "State", "CloseIO", "Pids", "Pause", "Resume", "Stats"]
    )
    match method:
        case "Exec":
            spec = wkt.any_of("x", json.dumps(make_process(dice.choice(PROGRAMS))).encode())
            return method, task.ExecProcessRequest(id="box", exec_id=exec_id, spec=spec)
        case "Kill":
            target = exec_id if dice.random() < 0.98 else ""
            return method, task.KillRequest(id="box", exec_id=target, signal=9)
        case "Pids" | "Pause" | "Resume" | "Stats":
            return method, getattr(task, f"{method}Request")(id="box")
        case "CloseIO":
            return method, task.CloseIORequest(id="box", exec_id=exec_id, stdin=True)
        case _:
            return method, getattr(task, f"{method}Request")(id="box", exec_id=exec_id)


def check_order(records: list[Any]) -> None:
    """The promises of SHIM.md about the order of events, for every incarnation of an exec's id."""
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    state: dict[str, str] = {}
    for record in records:
        name = record.topic.removeprefix("/tasks/")
        who = record.exit.exec_id
        if name in ("exec-added", "exec-started"):
            kind = "TaskExecAdded" if name == "exec-added" else "TaskExecStarted"
            who = getattr(__import__("ttrpc.api.events", fromlist=[kind]), kind).FromString(record.event.value).exec_id
        before = state.get(who, "")
        allowed = {
            "create": [""], "start": ["create"], "paused": ["start", "resumed"], "resumed": ["paused"],
            "exec-added": ["", "exec-added", "exit"], "exec-started": ["exec-added"],
            "exit": ["create", "start", "paused", "resumed", "exec-started"], "delete": ["exit"],
        }[name]  # fmt: skip
        assert before in allowed, f"{name} of {who or 'init'} after {before or 'nothing'}"
        assert state.get("", "") not in ("exit", "delete") or name == "delete", f"{name} after init's exit"
        state[who] = name
    assert all(last != "exec-started" for last in state.values()), f"an exec's exit is missing: {state}"


@pytest.mark.parametrize("seed", range(4))
def test_any_requests_in_any_order(seed: int) -> None:
    dice = random.Random(seed)
    with running() as box:
        clients = [box.connect() for _ in range(3)]
        pending = []
        for _ in range(CALLS):
            method, request = some_request(dice)
            pending.append((method, dice.choice(clients).open_stream(TASK, method, request)))
            while pending and (len(pending) > 6 or dice.random() < 0.3):
                settle(*pending.pop(dice.randrange(len(pending))))
        for method, stream in pending:
            settle(method, stream)
        end(box)
        check_order(box.events("/tasks/delete"))


def settle(method: str, stream: Any) -> None:
    try:
        stream.receive(timeout_s=30)
    except StatusError as error:
        if error.code not in EXPECTED:
            raise AssertionError(f"{method} is answered {error!r}") from None


def end(box: ShimBox) -> None:
    """Whatever state it is in: killed, waited for, deleted."""
    try:
        box.kill(9)
    except StatusError as error:
        if error.code != Code.NOT_FOUND:
            raise
    assert box.wait().exit_status == 137
    box.delete()
