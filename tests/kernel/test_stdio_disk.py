"""A log on a disk that is really full: a small tmpfs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.core.loop import Loop
from shim.streams.stdio import Stdio, StdioRequest
from tests.support.streams import play, turn_until

DISK_BYTES = 256 << 10
COUNT = 20_000

WRITER = """
import os
for start in range(0, 20000, 50):
    data = b"".join(b"%08d is a line of output\\n" % n for n in range(start, start + 50))
    while data:
        data = data[os.write(1, data):]
"""


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 256 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


class Run:
    """A process writing COUNT lines into a log on the full disk."""

    def __init__(self, loop: Loop, tmp_path: Path, disk: Path, query: str) -> None:
        self.loop = loop
        self.path = disk / "c.log"
        self.reports: list[str] = []
        self.stdio = Stdio(
            loop,
            str(tmp_path),
            "init",
            StdioRequest("", f"log://{self.path}?{query}", ""),
            report=self.reports.append,
        )
        self.stdio.open()
        out = self.stdio.child_ends()[1]
        assert out is not None
        argv = [sys.executable, "-I", "-S", "-c", WRITER]
        actions = [(os.POSIX_SPAWN_DUP2, out, 1)]
        self.pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions)
        self.stdio.started()
        self.has_exited = False

    def exited(self) -> bool:
        if not self.has_exited:
            self.has_exited = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return self.has_exited

    def finish(self) -> None:
        turn_until(self.loop, self.exited, deadline_s=30, what="the writer's exit")
        play(self.loop, self.stdio.drain(10.0))
        self.stdio.close()


def whole() -> bytes:
    return b"".join(b"%08d is a line of output\n" % number for number in range(COUNT))


@pytest.mark.parametrize("form", ["json", "raw"])
def test_a_full_disk_makes_the_process_wait_and_loses_nothing(
    loop: Loop, tmp_path: Path, disk: Path, form: str
) -> None:
    """Once there is room again, everything is in the log, in order, no record broken."""
    filler = disk / "filler"
    filler.write_bytes(bytes(DISK_BYTES - (100 << 10)))
    run = Run(loop, tmp_path, disk, f"format={form}")
    turn_until(loop, lambda: run.reports)
    seen = run.path.stat().st_size
    for _ in range(5):
        loop.run_once(0.05)
    assert run.path.stat().st_size == seen
    assert "No space left" in run.reports[0]

    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    run.finish()

    assert _text(run.path, form) == whole()
    assert run.stdio.dropped_bytes == 0
    assert len(run.reports) == 2, "said once, and once that it is over"


@pytest.mark.parametrize("form", ["json", "raw"])
def test_mode_drop_lets_the_process_go_on_and_counts_exactly(loop: Loop, tmp_path: Path, disk: Path, form: str) -> None:
    run = Run(loop, tmp_path, disk, f"format={form}&mode=drop")
    turn_until(loop, run.exited, deadline_s=30, what="the writer's exit on a full disk")
    turn_until(loop, lambda: run.stdio.log_bytes == len(whole()))
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    run.finish()

    text = _text(run.path, form)
    mark = b"[shimd: %d bytes dropped: no space]\n" % run.stdio.dropped_bytes
    if run.stdio.dropped_bytes:
        begin, found, rest = text.partition(mark)
        assert found
        assert whole().startswith(begin.rstrip(b"\n")[:100])
        assert whole().endswith(rest)
    assert len(text) - (len(mark) if run.stdio.dropped_bytes else 0) + run.stdio.dropped_bytes in (
        len(whole()),
        len(whole()) + 1,
    )


def test_rotation_on_a_full_disk_keeps_what_there_is(loop: Loop, tmp_path: Path, disk: Path) -> None:
    """Old files make room for new ones, so a bounded log on a small disk never stops."""
    run = Run(loop, tmp_path, disk, "format=json&max-size=40000&max-files=3")
    run.finish()

    assert run.reports == []
    lines = b"".join(path.read_bytes() for path in (disk / "c.log.1", disk / "c.log")).splitlines()
    numbers = [int(json.loads(line)["log"][:8]) for line in lines]
    assert numbers == list(range(COUNT - len(numbers), COUNT))


def _text(path: Path, form: str) -> bytes:
    data = path.read_bytes()
    if form == "raw":
        return data
    return "".join(json.loads(line)["log"] for line in data.splitlines()).encode()
