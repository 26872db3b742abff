"""Births wait for copies; who asked and hangs up is waited for no longer."""

import itertools
import os
import socket
from collections.abc import Iterator

import pytest

from shim import launch
from shim.core.loop import Loop
from shim.core.shimlog import ShimLog
from shim.keeper import nursery as nurseries
from shim.keeper.births import Birth
from shim.keeper.nursery import Nursery


class Barren:
    """A template that never has a copy ready."""

    pids = itertools.count(1)

    def __init__(self) -> None:
        self.pid = next(self.pids)
        self.channel, self._peer = socket.socketpair()
        self.copies: list[socket.socket] = []
        self.is_killed = False

    def kill(self) -> None:
        self.is_killed = True

    def copy(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.copies.append(theirs)
        return ours

    def dismiss(self) -> None:
        for end in (self._peer, *self.copies):
            end.close()


class Asked(Birth):
    """A birth of which nothing is left but who asked."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.said: list[str] = []

    def give_up(self, why: BaseException) -> None:
        self.said.append(str(why))
        self.connection.close()


@pytest.fixture
def nursery(tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Nursery]:
    monkeypatch.setattr(nurseries, "fork_template", lambda **_: Barren())
    monkeypatch.setattr(nurseries, "NEW_S", 0.0)
    loop, log = Loop(), ShimLog(os.fspath(tmp_path), "keeper")
    made = Nursery(loop, os.fspath(tmp_path), log, lambda ward: None)
    yield made
    made.close()
    loop.close()
    log.close()


def ask(nursery: Nursery) -> tuple[Asked, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    birth = Asked(ours)
    nursery.expect(birth)
    return birth, theirs


def run_until(nursery: Nursery, birth: Asked) -> None:
    """Run the nursery until this birth is given up; 20 s at most, then it was not."""
    nursery.loop.call_later(20.0, nursery.loop.stop)
    give_up = birth.give_up

    def note(why: BaseException) -> None:
        give_up(why)
        nursery.loop.stop()

    birth.give_up = note  # type: ignore[method-assign]
    nursery.loop.run()


def test_who_hangs_up_lets_bundle_and_address_go_at_once(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts the shim by itself then, and would find the bundle held."""
    monkeypatch.setattr(nurseries, "BIRTH_S", 1000.0)
    birth, client = ask(nursery)
    other, stays = ask(nursery)
    client.close()
    run_until(nursery, birth)

    assert birth.said == ["it did not wait"]
    assert other.said == []
    assert list(nursery.births) == [other]
    nursery.dismiss()
    assert other.said == ["the keeper ends"]
    stays.close()


def test_without_a_copy_in_time_the_asker_is_told(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nurseries, "BIRTH_S", 0.01)
    birth, client = ask(nursery)
    run_until(nursery, birth)

    assert birth.said == ["no copy was ready within 0.01 s"]
    assert nursery.births == {}
    client.close()


def test_who_asks_a_new_keeper_is_told_later(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is slow in a machine that has just booted, a start beside the keeper too."""
    monkeypatch.setattr(nurseries, "BIRTH_S", 0.0)
    monkeypatch.setattr(nurseries, "NEW_S", 1000.0)
    monkeypatch.setattr(nurseries, "NEW_BIRTH_S", 0.02)
    birth, client = ask(nursery)
    run_until(nursery, birth)

    assert birth.said == ["no copy was ready within 0.02 s"]
    client.close()


def test_a_keeper_gives_up_before_who_asked_does() -> None:
    """Also while it is new: it is that for a shorter time than who asks believes."""
    assert nurseries.BIRTH_S < launch.ANSWER_S
    assert nurseries.NEW_BIRTH_S < launch.YOUNG_ANSWER_S
    assert nurseries.NEW_S + launch.YOUNG_ANSWER_S < launch.YOUNG_S


def test_a_template_that_does_not_fork_is_replaced_for_successors_wait_for_it(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped, or stuck: it does not end, and nobody would notice."""
    monkeypatch.setattr(nurseries, "STUCK_S", 0.05)
    monkeypatch.setattr(nurseries, "BIRTH_S", 1000.0)
    birth, client = ask(nursery)
    stuck = nursery.template
    assert isinstance(stuck, Barren)
    nursery.loop.call_later(20.0, nursery.loop.stop)
    while nursery.template is stuck:
        nursery.loop.run_once(1.0)

    assert stuck.is_killed
    assert list(nursery.births) == [birth]
    assert nursery.ended(stuck.pid, 9)
    another = nursery.template
    nursery.loop.run_once(0.0)
    assert nursery.template is another
    stuck.dismiss()
    client.close()


def test_copies_that_come_too_late_do_not_pile_up(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many starts at once on a machine too busy to fork in time: they go cold, and the copies come all the same."""
    monkeypatch.setattr(nurseries, "BIRTH_S", 0.01)
    clients = [ask(nursery)[1] for _ in range(20)]
    nursery.loop.call_later(20.0, nursery.loop.stop)
    while nursery.births:
        nursery.loop.run_once(1.0)
    template = nursery.template
    assert isinstance(template, Barren)
    assert len(template.copies) == 20 + nurseries.SPARES
    for copy in template.copies:
        copy.send(b"1")
    while nursery.coming:
        nursery.loop.run_once(1.0)

    assert len(nursery.spares) == nurseries.SPARES
    for client in clients:
        client.close()
