"""Output under containerd, through `ctr`'s FIFOs and into file://, ours and the Go shim."""

import os
import subprocess

from bench.both_shims import ShimdUnderContainerd
from bench.containerd import Containerd
from bench.logs import LINE, speed
from bench.measure import Figures, compare, in_turn
from bench.rig import CALL_DEADLINE_S, Daemon, Rig, command
from tests.support.waiting import wait_until

SIZES = {"rounds": 7, "mib": 256}
OURS = ShimdUnderContainerd


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """From a word to the container until it has written all and ended; all of it has to have arrived."""
    big = os.path.join(rig.rootfs, "big")
    with open(big, "wb") as file:
        file.write(LINE * ((sizes["mib"] << 20) // len(LINE)))
    size = os.path.getsize(big)

    def through_file(side: Daemon, number: int) -> float:
        name = f"file{number}"
        side.made.append(name)
        command(*side.run_words(name, *script(side, name)))
        log = os.path.join(side.folder, f"{name}.log")
        taken = speed(rig, gate(side, name), side.running()[name], size, lambda: os.path.getsize(log))
        side.remove(name)
        os.unlink(log)
        return taken

    def through_fifo(side: Daemon, number: int) -> float:
        assert isinstance(side, Containerd)
        name = f"fifo{number}"
        output = os.path.join(side.folder, f"{name}.out")
        with open(output, "wb") as file:
            argv = side.run_and_remove_words(name, *script(side, name))
            client = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file)
        wait_until(lambda: name in side.running(), what="the container to run")
        taken = speed(rig, gate(side, name), side.running()[name], size, lambda: os.path.getsize(output))
        assert client.wait(CALL_DEADLINE_S) == 0
        os.unlink(output)
        return taken

    rounds = sizes["rounds"]
    files = in_turn(rounds, lambda n: through_file(ours, n), lambda n: through_file(peer, n))
    fifos = in_turn(rounds, lambda n: through_fifo(ours, n), lambda n: through_fifo(peer, n))
    return {**compare("file_uri", "mib_s", *files), **compare("fifo", "mib_s", *fifos)}


def gate(side: Daemon, name: str) -> str:
    """Its word to begin; both sides have one root file system."""
    return f"{side.name}-{name}"


def script(side: Daemon, name: str) -> tuple[str, ...]:
    """Wait for the word, write, end."""
    return ("/bin/sh", "-c", f"while [ ! -e /go-{gate(side, name)} ]; do usleep 1000; done; cat /big")
