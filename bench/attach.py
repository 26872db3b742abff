"""Output of an exec in the foreground, from its write to the client's standard output: shimctl beside ctr."""

import os
import subprocess

from bench.logs import LINE
from bench.measure import Figures, compare, in_turn
from bench.rig import CALL_DEADLINE_S, CommandFailed, Daemon, Rig, Stopwatch
from tests.support.waiting import wait_until

SIZES = {"rounds": 9, "mib": 256}
SPLICE_BYTES = 1 << 20


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """From a word to the process until all it wrote has come out of its client: into a pipe, and into a file.

    Ours goes from the shim to shimctl as an Attach stream, theirs through a FIFO that ctr reads. No log is kept.
    """
    big = os.path.join(rig.rootfs, "big")
    with open(big, "wb") as file:
        file.write(LINE * ((sizes["mib"] << 20) // len(LINE)))
    size = os.path.getsize(big)
    for side in (ours, peer):
        side.run("attach")
    rounds = sizes["rounds"]
    pipes = in_turn(rounds, lambda n: into_pipe(ours, n, size), lambda n: into_pipe(peer, n, size))
    files = in_turn(rounds, lambda n: into_file(ours, n, size), lambda n: into_file(peer, n, size))
    return {**compare("attach_pipe", "mib_s", *pipes), **compare("attach_file", "mib_s", *files)}


def into_pipe(side: Daemon, number: int, size: int) -> float:
    """In MiB/s; what comes out is thrown away unread, so that the reader costs little."""
    word = f"{side.name}-pipe{number}"
    with subprocess.Popen(words(side, word), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        reading = client.stdout.fileno()
        if os.read(reading, 1) != b"\n":
            raise CommandFailed(f"{word}: nothing came")
        watch = Stopwatch()
        let_go(side, word)
        taken, taken_s = 0, 0.0
        with open(os.devnull, "wb") as null:
            while moved := os.splice(reading, null.fileno(), SPLICE_BYTES):
                taken += moved
                taken_s = watch.seconds()
        finish(client, taken, size)
    return size / (1 << 20) / taken_s


def into_file(side: Daemon, number: int, size: int) -> float:
    """The same, and the file is looked at until all is there."""
    word = f"{side.name}-file{number}"
    path = os.path.join(side.folder, "output")
    with open(path, "wb") as file:
        client = subprocess.Popen(words(side, word), stdin=subprocess.DEVNULL, stdout=file)
    wait_until(lambda: os.path.getsize(path) == 1, what="the first byte")
    watch = Stopwatch()
    let_go(side, word)
    pidfd = os.pidfd_open(client.pid)
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    finally:
        os.close(pidfd)
    taken_s = watch.seconds()
    finish(client, os.path.getsize(path) - 1, size)
    os.unlink(path)
    return size / (1 << 20) / taken_s


def words(side: Daemon, word: str) -> list[str]:
    """The client's words for: say that you run, wait for the word, write, end."""
    script = f"echo; while [ ! -e /go-{word} ]; do usleep 1000; done; cat /big"
    return side.exec_words("attach", hash(word) & 0xFFFF_FFFF, "/bin/sh", "-c", script)


def let_go(side: Daemon, word: str) -> None:
    """Give the word; both sides have one root file system."""
    with open(os.path.join(side.rig.rootfs, f"go-{word}"), "w", encoding="ascii"):
        pass


def finish(client: "subprocess.Popen[bytes]", taken: int, size: int) -> None:
    """Wait for the client's end, and see that each byte came once."""
    if client.wait(CALL_DEADLINE_S) != 0 or taken != size:
        raise CommandFailed(f"the client ended with {client.returncode} after {taken} of {size} bytes")
