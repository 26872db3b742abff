"""How fast output is taken and written down: raw beside the Go shim's raw file, JSON lines beside conmon's lines."""

import os
import select
from collections.abc import Callable

from bench.conmon import Conmon
from bench.measure import Figures, compare, in_turn
from bench.ours import Shimd
from bench.rig import CALL_DEADLINE_S, CommandFailed, Daemon, Rig, Stopwatch, command
from tests.support.waiting import wait_until

SIZES = {"rounds": 7, "mib": 128}
LINE = b"x" * 99 + b"\n"


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """From a word to the container until it has written all and ended: the pipe holds 64 KiB, the rest was taken.

    Afterwards the log must have everything: what is not written down has not been taken.
    """
    big = os.path.join(rig.rootfs, "big")
    with open(big, "wb") as file:
        file.write(LINE * ((sizes["mib"] << 20) // len(LINE)))
    size = os.path.getsize(big)

    def script(name: str) -> tuple[str, ...]:
        return ("/bin/sh", "-c", f"while [ ! -e /go-{name} ]; do usleep 1000; done; cat /big")

    def under_daemon(side: Daemon, driver: str, number: int) -> float:
        name = f"{driver}{number}"
        side.made.append(name)
        command(*run_words(side, driver, name), *script(name))
        taken_mib_s = speed(rig, name, side.running()[name], size, lambda: log_size(side, name))
        side.remove(name)
        return taken_mib_s

    def under_conmon(number: int) -> float:
        name = f"conmon{number}"
        monitored = Conmon(rig, name, *script(name))
        taken_mib_s = speed(rig, name, monitored.start(), size, lambda: os.path.getsize(monitored.log))
        monitored.remove()
        return taken_mib_s

    raw, json_lines, go_shim, conmon = in_turn(
        sizes["rounds"],
        lambda n: under_daemon(ours, "raw", n),
        lambda n: under_daemon(ours, "json-file", n),
        lambda n: under_daemon(peer, "file", n),
        under_conmon,
    )
    return {**compare("raw", "mib_s", raw, go_shim), **compare("lines", "mib_s", json_lines, conmon)}


def run_words(side: Daemon, driver: str, name: str) -> list[str]:
    """The client's words for: run detached with this log."""
    if isinstance(side, Shimd):
        rootfs = side.rig.rootfs
        return side.client("run", "-d", "--log-driver", driver, "--rootfs", rootfs, "--name", name, "--")
    return side.run_words(name)


def speed(rig: Rig, name: str, pid: int, size: int, logged: Callable[[], int]) -> float:
    """Give the word, wait for the end of the container, and see that all of it is in the log. In MiB/s."""
    pidfd = os.pidfd_open(pid)
    try:
        watch = Stopwatch()
        with open(os.path.join(rig.rootfs, f"go-{name}"), "w", encoding="ascii"):
            pass
        if not select.select([pidfd], [], [], CALL_DEADLINE_S)[0]:
            raise CommandFailed(f"{name}: {size} bytes were not taken in {CALL_DEADLINE_S:g} s")
        taken_s = watch.seconds()
    finally:
        os.close(pidfd)
    wait_until(lambda: logged() >= size, what=f"all output of {name} in its log")
    return size / (1 << 20) / taken_s


def log_size(side: Daemon, name: str) -> int:
    """Bytes of everything logged for a container."""
    folder = os.path.join(side.folder, "root", "logs", side.rig.namespace, name)
    paths = [os.path.join(folder, file) for file in os.listdir(folder)] if isinstance(side, Shimd) else []
    return sum(map(os.path.getsize, paths or [os.path.join(side.folder, f"{name}.log")]))
