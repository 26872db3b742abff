"""How a shim without a keeper looks for one, and what a keeper makes of the request."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import launch
from shim.bundle import STATE_VERSION
from shim.core.loop import Loop
from shim.keeper.adoption import unpack_adoption
from shim.keeper.looks import youngest
from shim.keeper.spawn import Busy
from shim.keeper.wire import BadRequest, verb_of
from shim.params import Params
from shim.recovery import rejoin
from shim.recovery.rejoin import PAUSE_MAX_S, Rejoin, find_keeper, pack_adoption
from shim.recovery.spares import Spares
from tests.support.stage import StagedLog

TEXTS = st.text(st.characters(exclude_characters="\0"))  # lone surrogates too: that is how bytes that are no text come
HOUR_S = 3600.0


# --- the request


@given(TEXTS, TEXTS, st.dictionaries(TEXTS, TEXTS), st.booleans())
def test_an_adoption_arrives_as_it_was(bundle: str, cgroup: str, environment: dict[str, str], debug: bool) -> None:
    params = Params(namespace="n", id="c", bundle=bundle, shim_cgroup=cgroup, environment=environment, debug=debug)
    message = pack_adoption(params)
    version, arrived = unpack_adoption(message)

    assert verb_of(message) == launch.ADOPT
    assert version == STATE_VERSION
    assert [getattr(arrived, name) for name in Params.__slots__] == [getattr(params, name) for name in Params.__slots__]


def test_what_a_newer_shim_adds_is_left_out_and_what_an_older_one_lacks_has_its_default() -> None:
    body = {"state_version": 7, "more": 1, "params": {"namespace": "n", "id": "c", "novelty": [1]}}
    version, params = unpack_adoption(b"\0".join((launch.MAGIC, launch.ADOPT, json.dumps(body).encode())))

    assert (version, params.id, params.events_address) == (7, "c", "")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b"\xff", b'{"state_version": 1, "params": {"id": "c"}}',
        b'{"params": {"namespace": "n", "id": "c"}}', b'{"state_version": 1, "params": []}',
        b'{"state_version": 1, "params": {"namespace": "n", "id": 1}}',
        b'{"state_version": 1, "params": {"namespace": "n", "id": "c", "environment": {"A": 1}}}',
        b'{"state_version": 1, "params": {"namespace": "n", "id": "c", "environment": []}}',
        b'{"state_version": 1, "params": {"namespace": "n", "id": "c", "bundle": "/a\\u0000b"}}',
        b'{"state_version": 1, "params": {"namespace": "n", "id": "c", "debug": "yes"}}',
    ],
)  # fmt: skip
def test_anything_else_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        unpack_adoption(b"\0".join((launch.MAGIC, launch.ADOPT, body)))


@pytest.mark.parametrize("message", [b"", b"shimd-keeper 1", b"shimd-keeper 2\0adopt\0{}", b"adopt"])
def test_what_is_of_another_version_has_no_verb(message: bytes) -> None:
    assert verb_of(message) == b""


# --- where


def test_an_installation_that_is_gone_leaves_its_shims_to_the_youngest_keeper(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = str(tmp_path)
    for number, name in enumerate(("1-1", "2-2", "2-2.new")):
        os.mknod(os.path.join(directory, name), stat.S_IFSOCK | 0o600)
        os.utime(os.path.join(directory, name), (number, number))
    with open(os.path.join(directory, "3-3"), "w", encoding="ascii"):
        pass
    params = Params(namespace="n", id="c", environment={"SHIMD_KEEPER": directory})
    assert youngest(directory) == os.path.join(directory, "2-2")
    assert find_keeper(directory.encode(), params) == (launch.keeper_path({b"SHIMD_KEEPER": directory.encode()}), True)

    monkeypatch.setattr(launch, "__file__", "/nowhere/shim/launch.py")
    assert find_keeper(directory.encode(), params) == (os.path.join(directory, "2-2").encode(), False)
    assert youngest("/nowhere") == ""


# --- when


class Looking:
    """A shim that looks for a keeper where there is none; the clock is ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, environment: dict[str, str] | None = None) -> None:
        self.now = 1000.0
        self.asked: list[float] = []
        self.started: list[float] = []
        self.made_at = 1.0
        self.failure: Exception | None = None
        self.loop = Loop(clock=lambda: self.now)
        self.spares = Spares(self.loop)
        params = Params(
            namespace="n", id="c", environment={"SHIMD_KEEPER": "/k"} if environment is None else environment
        )
        monkeypatch.setattr(rejoin, "connect", self._connect)
        monkeypatch.setattr(rejoin, "start_keeper", self._start)
        monkeypatch.setattr(rejoin, "made", lambda _path: self.made_at)
        self.log = StagedLog()
        self.rejoin = Rejoin(self.loop, params, self.spares, self.log, 3, 4)  # type: ignore[arg-type]

    def _connect(self, _path: bytes) -> Any:
        self.asked.append(self.now)
        raise ConnectionRefusedError(111, "Connection refused")

    def _start(self, _path: bytes, *, patience_s: float) -> None:
        assert patience_s == 0.0, "the loop would stand still"
        self.started.append(self.now)
        if self.failure is not None:
            raise self.failure
        self.made_at += 1

    def pass_time(self, seconds: float) -> None:
        ends_at = self.now + seconds
        while self.loop._timers and self.loop._timers[0].at <= ends_at:
            self.now = max(self.now, self.loop._timers[0].at)
            self.loop.run_once(0)
        self.now = ends_at

    def lose(self) -> None:
        self.spares.on_lost()


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Looking]]:
    made: list[Looking] = []

    def make(**options: Any) -> Looking:
        made.append(Looking(monkeypatch, **options))
        return made[-1]

    yield make
    for each in made:
        each.loop.close()


def test_a_lost_keeper_is_followed_at_once_and_one_that_cannot_live_ever_more_seldom(
    look: Callable[..., Looking], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper that dies while it imports is started again after twice the time, a minute or two at last."""
    monkeypatch.setattr(Spares, "is_connected", True)
    looking = look()
    looking.pass_time(HOUR_S)
    assert looking.asked == [], "who has one looks for none"
    began = looking.now
    looking.lose()
    looking.pass_time(0.0)
    assert looking.started == [began]
    looking.pass_time(HOUR_S)

    pauses = [later - earlier for earlier, later in zip(looking.started, looking.started[1:], strict=False)]
    assert pauses == sorted(pauses)
    assert PAUSE_MAX_S <= pauses[-1] <= 4 * PAUSE_MAX_S
    assert len(looking.asked) < 200


def test_where_no_keeper_can_be_started_it_is_tried_seldom_and_said_once(look: Callable[..., Looking]) -> None:
    looking = look()
    looking.failure = launch.Unserved("the directory is not ours alone")
    looking.pass_time(HOUR_S)

    assert 30 < len(looking.started) < 100
    assert len([line for line in looking.log.lines if "not ours alone" in line]) <= 2


def test_while_another_starts_one_nobody_else_does(look: Callable[..., Looking]) -> None:
    looking = look()
    looking.failure = Busy("locked")
    looking.pass_time(1.0 + 0.1)

    assert 4 <= len(looking.started) <= 7
    assert looking.log.lines == []


def test_switched_off_or_without_a_lock_nobody_looks(look: Callable[..., Looking]) -> None:
    off = look(environment={"SHIMD_KEEPER": "off"})
    off.pass_time(HOUR_S)
    assert off.asked == []
    unlocked = Rejoin(off.loop, Params(namespace="n", id="c"), off.spares, off.log, 3, -1)  # type: ignore[arg-type]
    off.pass_time(HOUR_S)
    assert (off.asked, unlocked._timer) == ([], None)


def test_who_ends_looks_no_more(look: Callable[..., Looking]) -> None:
    looking = look()
    looking.rejoin.close()
    looking.lose()
    looking.pass_time(HOUR_S)

    assert looking.asked == []
