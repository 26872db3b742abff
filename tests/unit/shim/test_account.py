"""Input on its way: whoever is killed between two system calls, it is counted and moved once."""

import os
from collections.abc import Iterator

import pytest

from shim.streams import account as accounts
from shim.streams.account import CLIENTS_MAX, TIDY_BYTES, Account

ANNA, BEN = 11, 22


_made: list[Account] = []


@pytest.fixture
def account() -> Iterator[Account]:
    _made.append(Account())
    yield _made[0]
    while _made:
        _made.pop().close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def successor(account: Account) -> Account:
    """Who was handed a copy of the fd: the position is one and the same."""
    _made.append(Account(os.dup(account.fd)))
    return _made[-1]


def test_what_was_taken_is_known_and_moved_by_whoever_comes_next(account: Account, pipe: tuple[int, int]) -> None:
    account.put(b"one ", ANNA)
    account.put(b"two ", BEN)
    account.move(pipe[1], is_terminal=False)
    account.put(b"three", ANNA)
    assert os.read(pipe[0], 100) == b"one two "
    after = successor(account)

    assert (after.taken(ANNA), after.taken(BEN), after.knows(33)) == (9, 4, False)
    assert after.pending() == b"three"
    after.move(pipe[1], is_terminal=False)
    assert os.read(pipe[0], 100) == b"three"
    assert successor(after).pending_bytes == 0


def killed(_account: Account) -> None:
    raise OSError("killed")


def test_input_that_was_written_and_not_counted_was_not_taken(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.put(b"counted", ANNA)
    with monkeypatch.context() as patch:
        patch.setattr(Account, "_note", killed)
        with pytest.raises(OSError, match="killed"):
            account.put(b"lost in between", ANNA)
    assert account.taken(ANNA) == 7
    after = successor(account)
    assert (after.taken(ANNA), after.pending()) == (7, b"counted")
    after.put(b" and more", ANNA)
    assert after.pending() == b"counted and more"


def test_a_torn_note_leaves_the_one_before(account: Account) -> None:
    account.put(b"one", ANNA)
    account.put(b"two", ANNA)
    at = account._serial % 2 * accounts._SLOT_BYTES
    os.pwrite(account.fd, b"\xff" * 5, at + 9)
    after = successor(account)
    assert (after.taken(ANNA), after.pending()) == (3, b"one")


def test_a_full_pipe_takes_what_fits_and_nothing_is_moved_twice(account: Account, pipe: tuple[int, int]) -> None:
    data = os.urandom(200_000)
    account.put(data, ANNA)
    heard = b""
    while account.pending_bytes:
        try:
            account.move(pipe[1], is_terminal=False)
        except BlockingIOError:
            account = successor(account)  # killed here, each time
            heard += os.read(pipe[0], 50_000)
    while len(heard) < len(data):
        heard += os.read(pipe[0], 1 << 20)
    assert heard == data


def test_what_is_over_is_cut_off_and_what_lies_in_the_pipe_stays(account: Account, pipe: tuple[int, int]) -> None:
    heard, said = b"", b""
    for number in range(TIDY_BYTES // 10_000 * 2):
        said += (data := b"%09d\n" % number * 1000)
        account.put(data, ANNA)
        account.move(pipe[1], is_terminal=False)
        heard += os.read(pipe[0], 5_000)
        heard += os.read(pipe[0], 4_000)
        heard += os.read(pipe[0], 1_000)
    assert heard == said
    assert os.fstat(account.fd).st_blocks * 512 <= 2 * TIDY_BYTES
    assert successor(account).taken(ANNA) == len(said)


def test_the_clients_that_wrote_last_are_known(account: Account) -> None:
    for number in range(1, CLIENTS_MAX + 10):
        account.put(b"x", number)
    account.put(b"y", 10)
    account.enter(9999)
    after = successor(account)
    assert not after.knows(1)
    assert (after.taken(10), after.taken(CLIENTS_MAX + 9), after.knows(9999)) == (2, 1, True)
