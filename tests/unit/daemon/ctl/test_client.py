"""How long an absent daemon is waited for, and what is said. The socket is a script; waiting costs no time."""

from collections.abc import Callable
from typing import Any

import pytest

from daemon.ctl import client
from daemon.ctl.client import Daemon
from daemon.ctl.errors import CtlError, DaemonGone
from daemon.stopping import NOT_BEGUN
from ttrpc.errors import ConnectionLost, DeadlineExceeded, StatusError
from ttrpc.status import Code

MISSING = FileNotFoundError(2, "No such file or directory")
REFUSED = ConnectionRefusedError(111, "Connection refused")


class Wire:
    """Connections and calls as scripted; the last answer of each goes on for ever."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.connects: list[Any] = []
        self.calls: list[Any] = []
        self.said: list[str] = []

    def connect(self, _path: str) -> "Wire":
        found = self.connects[0] if len(self.connects) == 1 else self.connects.pop(0)
        if isinstance(found, Exception):
            raise found
        return self

    def call(self, *_: Any, **__: Any) -> Any:
        found = self.calls.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    made = Wire()

    def sleep(seconds: float) -> None:
        made.now_s += max(seconds, 0.001)

    monkeypatch.setattr(client.BlockingClient, "connect", made.connect)
    monkeypatch.setattr(client.time, "monotonic", lambda: made.now_s)
    monkeypatch.setattr(client.time, "sleep", sleep)
    return made


@pytest.fixture
def daemon_on(wire: Wire, tmp_path: Any) -> Callable[..., Daemon]:
    def make(patience_s: float = 10.0, folder: str | None = None) -> Daemon:
        return Daemon(f"{folder or tmp_path}/d.sock", "default", patience_s=patience_s, notice=wire.said.append)

    return make


def test_a_refused_connection_is_a_daemon_that_will_return(wire: Wire, daemon_on: Callable[..., Daemon]) -> None:
    wire.connects = [REFUSED, REFUSED, None]
    wire.calls = ["answer"]

    assert daemon_on().call("s", "m", None) == "answer"  # type: ignore[arg-type]
    assert wire.said == []


def test_after_a_second_one_line_is_said(wire: Wire, daemon_on: Callable[..., Daemon]) -> None:
    wire.connects = [REFUSED] * 30 + [None]
    wire.calls = ["answer"]
    daemon_on().call("s", "m", None)  # type: ignore[arg-type]

    assert wire.said == ["the daemon is away; waiting up to 10 s for it to return"]


def test_the_patience_ends(wire: Wire, daemon_on: Callable[..., Daemon]) -> None:
    wire.connects = [REFUSED]
    with pytest.raises(DaemonGone, match="does not answer"):
        daemon_on(3.0).call("s", "m", None)  # type: ignore[arg-type]

    assert 3.0 <= wire.now_s < 3.3


@pytest.mark.parametrize(("folder", "waited_s"), [("/nowhere", 0.0), (None, client.ABSENT_GRACE_S)])
def test_a_socket_that_never_was_is_hardly_waited_for(
    wire: Wire, daemon_on: Callable[..., Daemon], folder: str | None, waited_s: float
) -> None:
    """A moment where its directory is there: a starting daemon replaces its stale socket."""
    wire.connects = [MISSING]
    with pytest.raises(DaemonGone, match="not running"):
        daemon_on(folder=folder).call("s", "m", None)  # type: ignore[arg-type]

    assert waited_s <= wire.now_s < waited_s + 0.2


def test_a_socket_that_was_there_a_moment_ago_is_waited_for(wire: Wire, daemon_on: Callable[..., Daemon]) -> None:
    wire.connects = [None, *[MISSING] * 20, None]
    wire.calls = [ConnectionLost("gone"), "answer"]

    assert daemon_on().call("s", "m", None) == "answer"  # type: ignore[arg-type]


def test_a_full_backlog_is_a_busy_daemon(wire: Wire, daemon_on: Callable[..., Daemon]) -> None:
    wire.connects = [DeadlineExceeded("took no connection"), None]
    wire.calls = ["answer"]

    assert daemon_on().call("s", "m", None) == "answer"  # type: ignore[arg-type]


def test_not_being_root_is_told_at_once(wire: Wire, daemon_on: Callable[..., Daemon]) -> None:
    wire.connects = [PermissionError(13, "Permission denied")]
    with pytest.raises(CtlError, match="permission denied") as refused:
        daemon_on().call("s", "m", None)  # type: ignore[arg-type]

    assert "root" in refused.value.hint
    assert wire.now_s == 0.0


def test_an_attempt_is_made_once(wire: Wire, daemon_on: Callable[..., Daemon]) -> None:
    wire.connects = [None]
    wire.calls = [ConnectionLost("gone"), "never asked"]
    with pytest.raises(ConnectionLost):
        daemon_on().attempt("s", "m", None)  # type: ignore[arg-type]

    assert wire.calls == ["never asked"]


def test_a_request_the_daemon_dies_of_is_not_fed_to_it_for_ever(wire: Wire, daemon_on: Callable[..., Daemon]) -> None:
    wire.connects = [None]
    wire.calls = [ConnectionLost("gone")] * 20
    with pytest.raises(DaemonGone, match="died 8 times"):
        daemon_on().call("s", "m", None)  # type: ignore[arg-type]


# --- a daemon that ends


def test_a_call_that_was_not_begun_is_sent_again(wire: Wire, daemon_on: Callable[..., Daemon]) -> None:
    """Whatever it is, also one that must not be sent twice; any other refusal is the answer."""
    wire.connects = [wire]
    wire.calls = [StatusError(Code.UNAVAILABLE, "stopping", (NOT_BEGUN,))] * 3 + ["the answer"]
    daemon = daemon_on()
    assert daemon.attempt("s", "Kill", None) == "the answer"  # type: ignore[arg-type]
    wire.calls = [StatusError(Code.UNAVAILABLE, "its shim does not answer")]
    with pytest.raises(StatusError, match="its shim"):
        daemon.attempt("s", "Kill", None)  # type: ignore[arg-type]


def test_a_daemon_that_stops_for_ever_is_given_up(wire: Wire, daemon_on: Callable[..., Daemon]) -> None:
    """After the patience."""
    wire.connects = [wire]
    wire.calls = [StatusError(Code.UNAVAILABLE, "stopping", (NOT_BEGUN,))] * 1000
    with pytest.raises(DaemonGone, match="does not end"):
        daemon_on(2.0).attempt("s", "Kill", None)  # type: ignore[arg-type]
    assert wire.now_s == pytest.approx(2.0, abs=0.2)


def test_a_wait_outlives_any_number_of_restarts(wire: Wire, daemon_on: Callable[..., Daemon]) -> None:
    """Deaths long after the request are not its doing; those soon after it are."""
    wire.connects = [wire]
    deaths = iter(range(50))

    def dies_later(*_: Any, **__: Any) -> str:
        wire.now_s += 60.0
        if next(deaths, None) is not None:
            raise ConnectionLost("it was restarted")
        return "the answer"

    wire.call = dies_later  # type: ignore[method-assign]
    assert daemon_on().call("s", "Wait", None) == "the answer"  # type: ignore[arg-type]
