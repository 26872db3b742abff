"""What changes how later tests, and what they start, live: orphans would fall to us, signals would not come."""

from collections.abc import Iterable

import prctl

SUBREAPER = "is a child subreaper"


def own() -> list[str]:
    """What is so of this process, in words. Source: proc_pid_status(5), prctl(2)."""
    with open("/proc/self/status", encoding="utf-8") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    found = [f"blocks the signals {status['SigBlk']}", f"ignores the signals {status['SigIgn']}"]
    if prctl.get_child_subreaper():
        found.append(SUBREAPER)
    return found


def undo(found: Iterable[str]) -> None:
    """Be no subreaper any more, if that is what was found. What was done to signals has an owner, who may live on."""
    if SUBREAPER in found:
        prctl.set_child_subreaper(0)
