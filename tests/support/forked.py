"""A piece of a test in a process of its own, which may be killed."""

import os
from collections.abc import Callable
from typing import Any


def fork(work: Callable[[], Any]) -> int:
    """The child's pid, the caller's to wait for. It exits with 0 once `work` has returned, with 1 when that raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid
