"""What a shim tells its keeper, also one that does not read."""

import os
import socket
from collections.abc import Iterator

import pytest

from shim.core.loop import Loop
from shim.recovery.spares import NOT_PINNED, PINNED, Spares

Kept = tuple[Spares, socket.socket]


@pytest.fixture
def kept() -> Iterator[Kept]:
    ours, keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop = Loop()
    spares = Spares(loop, ours.detach())
    yield spares, keeper
    spares.close()
    keeper.close()
    loop.close()


def test_nothing_piles_up_for_a_keeper_that_is_stopped(kept: Kept) -> None:
    """A month of execs, each with its pin: what it was never asked to make is taken away by who made it."""
    spares, _keeper = kept
    pidfd = os.pidfd_open(os.getpid())
    taken_away_by_us = 0
    for number in range(3000):
        path = f"/run/s/pins/x-{number}-1"
        spares.pin(path, pidfd)
        taken_away_by_us += not spares.unpin(path)
    os.close(pidfd)

    assert taken_away_by_us > 2000
    assert len(spares._words) < 10
    assert spares._pins == {}


def test_each_pin_has_its_own_answer(kept: Kept) -> None:
    """Of three the second fails; who waits for it is told why, and the third has nothing to do with that."""
    spares, keeper = kept
    pidfd = os.pidfd_open(os.getpid())
    asked = [spares.pin(f"/run/s/pins/x-{number}-1", pidfd) for number in range(3)]
    for word in (PINNED, NOT_PINNED + b"no room", PINNED, PINNED):
        keeper.send(word)
        spares._loop.run_once(5.0)
    os.close(pidfd)

    assert [each.value for each in asked if each is not None and each.fired] == ["", "no room", ""]


def test_a_keeper_that_reads_is_asked_for_both(kept: Kept) -> None:
    spares, keeper = kept
    pidfd = os.pidfd_open(os.getpid())
    assert spares.pin("/run/s/pins/x-1-1", pidfd) is not None
    assert spares.unpin("/run/s/pins/x-1-1")
    message, fds, _flags, _address = socket.recv_fds(keeper, 4096, 4)
    assert (message, len(fds)) == (b"pin /run/s/pins/x-1-1", 1)
    assert keeper.recv(4096) == b"unpin /run/s/pins/x-1-1"
    for fd in (pidfd, *fds):
        os.close(fd)
