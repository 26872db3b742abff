"""A full state directory: the container goes on, no exit is lost, and none is told that could not be read back."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.shimbox import ShimBox
from tests.support.waiting import wait_until
from ttrpc.errors import DeadlineExceeded, StatusError
from ttrpc.status import Code

SIZE_BYTES = 1 << 20


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("small"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "small", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def fill(path: str) -> str:
    """Take the last byte of a file system. Returns the file that has it."""
    name = os.path.join(path, "filler")
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (65536, 4096, 1):
            try:
                while True:
                    os.write(fd, b"x" * size)
            except OSError:
                continue
    finally:
        os.close(fd)
    return name


def test_exit_is_told_from_a_full_disk(small_disk: str) -> None:
    """Its room was set aside at create. The journal's records wait in memory, where Follow finds them."""
    with ShimBox(bundle_root=small_disk) as box:
        box.create()
        box.start()
        while os.path.getsize(box.path("journal")) % 4096 < 3900:  # tmpfs gives whole pages: leave no room in the last
            box.add_exec("filling", ["true"])
            box.delete("filling")
        seq = box.info().journal_seq
        filler = fill(small_disk)
        box.kill(9)

        assert box.wait().exit_status == 137
        assert '"signal": 9' in box.read("exits", "init.json")
        assert [record.topic for record in box.events("/tasks/exit")][-1] == "/tasks/exit"
        assert box.delete().exit_status == 137
        info = box.info()
        assert (info.journal_seq, info.unwritten_exits) == (seq + 2, 0)
        assert info.unwritten_records > 0

        os.unlink(filler)
        wait_until(lambda: b"/tasks/delete" in _bytes(box.path("journal")), what="the journal to catch up")


def test_exit_that_cannot_be_written_is_told_once_it_can(small_disk: str) -> None:
    """Without its reserve it must wait for room: facts before messages."""
    with ShimBox(bundle_root=small_disk) as box:
        box.create()
        box.start()
        os.unlink(box.path("exits", "init.json.new"))
        filler = fill(small_disk)
        box.kill(9)

        waiting = box.wait_later(client=box.connect())
        with pytest.raises(DeadlineExceeded):
            waiting.receive(timeout_s=0.5)
        info = box.info()
        assert (info.journal_seq, info.unwritten_exits) == (2, 1)
        assert box.state().status == 2

        os.unlink(filler)
        assert waiting.receive(timeout_s=10).exit_status == 137
        assert '"signal": 9' in box.read("exits", "init.json")


def test_create_and_exec_on_a_full_disk_are_refused_and_undone(small_disk: str) -> None:
    with ShimBox(bundle_root=small_disk) as box:
        box.launch()
        filler = fill(small_disk)
        with pytest.raises(StatusError) as error:
            box.create()
        assert error.value.code == Code.UNKNOWN
        assert "No space left" in error.value.message

        os.unlink(filler)
        box.create()
        box.start()
        filler = fill(small_disk)
        with pytest.raises(StatusError) as error:
            box.run_exec("e1", ["true"])
        assert "No space left" in error.value.message

        os.unlink(filler)
        assert box.run_exec("e2", ["true"]).exit_status == 0


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def test_start_on_a_full_disk_is_refused_and_leaves_no_shim(small_disk: str) -> None:
    with ShimBox(bundle_root=small_disk) as box:
        fill(small_disk)
        done = box.run_shim("start")

        assert done.returncode == 1
        assert b"No space left" in done.stderr
        assert done.stdout == b""
        assert os.listdir(box.sockets) == []
