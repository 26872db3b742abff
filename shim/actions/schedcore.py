"""Core scheduling: a shim and all it starts share processor cores with nobody else. Loaded by a cold `start` only."""

import ctypes
import os

# prctl(2), PR_SCHED_CORE: Linux 5.14 with CONFIG_SCHED_CORE. A cookie is passed on by fork.
PR_SCHED_CORE, CREATE, WHOLE_PROCESS = 62, 1, 1


def isolate(pid: int) -> None:
    """Give a process a cookie of its own. Raises: OSError where the kernel cannot."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SCHED_CORE, CREATE, pid, WHOLE_PROCESS, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"core scheduling, which SCHED_CORE asks for, is not to be had: {os.strerror(code)}")
