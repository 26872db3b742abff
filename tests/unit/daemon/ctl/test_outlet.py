"""How shimctl writes to its own streams: as much as they take, without blocking and without changing them."""

import fcntl
import os
from pathlib import Path

import pytest

from daemon.ctl.pump import PIPE_BUF_BYTES, Outlet


def test_a_pipe_is_given_more_than_a_page_at_once_and_stays_blocking_for_others() -> None:
    reading, writing = os.pipe()
    outlet = Outlet(writing)
    data = bytes(range(256)) * 4096
    taken = outlet.write(memoryview(data))
    with pytest.raises(BlockingIOError):
        outlet.write(memoryview(data))

    assert taken > PIPE_BUF_BYTES
    assert not fcntl.fcntl(writing, fcntl.F_GETFL) & os.O_NONBLOCK
    assert os.read(reading, len(data)) == data[:taken]
    assert outlet.write(memoryview(data)) == taken
    outlet.close()
    outlet.close()
    os.close(writing)
    assert os.read(reading, len(data)) == data[:taken]
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_a_pipe_nobody_reads_is_told_as_such() -> None:
    reading, writing = os.pipe()
    late = Outlet(writing)
    os.close(reading)
    for outlet in (late, Outlet(writing)):
        with pytest.raises(BrokenPipeError):
            outlet.write(memoryview(b"x"))
        outlet.close()
    os.close(writing)


def test_a_pipe_that_cannot_be_opened_again_gets_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> int:
        raise PermissionError

    reading, writing = os.pipe()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        outlet = Outlet(writing)
    pages = fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ) // PIPE_BUF_BYTES
    data = memoryview(bytes(3 * PIPE_BUF_BYTES))
    assert [outlet.write(data) for _ in range(pages)] == [PIPE_BUF_BYTES] * pages
    with pytest.raises(BlockingIOError):
        outlet.write(data)

    assert len(os.read(reading, 1 << 20)) == pages * PIPE_BUF_BYTES
    outlet.close()
    os.close(reading)
    os.close(writing)


def test_a_file_takes_all(tmp_path: Path) -> None:
    with open(tmp_path / "out", "ab") as file:
        outlet = Outlet(file.fileno())
        assert outlet.write(memoryview(bytes(1 << 20))) == 1 << 20
        outlet.close()
    assert (tmp_path / "out").stat().st_size == 1 << 20
