"""Detach keys, and a terminal that is put back."""

import os
import termios
from collections.abc import Iterator

import pytest

from daemon.ctl.errors import UsageError
from daemon.ctl.terminal import DetachKeys, RawTerminal, parse_detach_keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("a,ctrl-]", b"a\x1d"), ("CTRL-A", b"\x01"), ("", b""), ("x", b"x")],
)
def test_keys_are_read_as_the_bytes_a_terminal_sends(text: str, keys: bytes) -> None:
    assert keys == parse_detach_keys(text)


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pp", "alt-x", "ab", "ctrl-1"])
def test_other_keys_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_detach_keys(text)


@pytest.mark.parametrize(
    ("typed", "passed", "is_detached"),
    [
        ([b"hello"], [b"hello"], False),
        ([b"a\x10\x11b"], [b"a"], True),
        ([b"\x10", b"\x11"], [b"", b""], True),
        ([b"\x10x"], [b"\x10x"], False),  # half of it was meant for the container
        ([b"\x10", b"x"], [b"", b"\x10x"], False),
        ([b"\x10\x10\x11"], [b"\x10"], True),
    ],
)
def test_the_sequence_is_found_across_reads(typed: list[bytes], passed: list[bytes], is_detached: bool) -> None:
    keys = DetachKeys(b"\x10\x11")

    results = [keys.feed(data) for data in typed]

    assert passed == [out for out, _ in results]
    assert is_detached is results[-1][1]


def test_one_key_and_none() -> None:
    assert DetachKeys(b"x").feed(b"axb") == (b"a", True)
    assert DetachKeys(b"").feed(b"\x10\x11") == (b"\x10\x11", False)


@pytest.fixture
def terminal() -> Iterator[int]:
    master, slave = os.openpty()
    yield slave
    os.close(slave)
    os.close(master)


def test_a_raw_terminal_is_put_back_when_things_go_wrong(terminal: int) -> None:
    before = termios.tcgetattr(terminal)

    def go_wrong() -> None:
        with RawTerminal(terminal):
            assert not termios.tcgetattr(terminal)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        go_wrong()

    assert before == termios.tcgetattr(terminal)
