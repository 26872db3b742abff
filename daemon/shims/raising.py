"""Raising a successor for a shim that is gone: the shim's own `start`, in the bundle it left.

The successor finds the container by the bundle's files; see shim/SHIM.md, "Successors".
"""

import json
import logging

from daemon.config import Config
from daemon.shims import bundle, launch
from daemon.shims.handle import Handle
from ttrpc.api import runc, wkt
from ttrpc.errors import StatusError

log = logging.getLogger(__name__)

# So many are raised without a pause: what ended them may have been anything but the task. After that each is one more
# chance, at longer and longer intervals. A container that has ended gets so many in all, for only a shim can find out
# how; one that runs is never given up.
QUICK_TRIES, TRIES_MAX = 3, 10


def pause_s(raises: int, first_s: float, longest_s: float) -> float:
    """How long to wait after so many in vain. Pure."""
    if raises < QUICK_TRIES:
        return 0.0
    return min(longest_s, first_s * 2.0 ** min(raises - QUICK_TRIES, 30))


async def raise_shim(handle: Handle, program: launch.Program, config: Config) -> bool:
    """Start a shim in the bundle of one that is gone; whether that went well.

    A keeper may have done so in the meantime: then `start` refuses, and whoever asks again finds that one.
    """
    handle.raises += 1
    options = wkt.pack(runc.Options(shim_cgroup=_shim_cgroup(handle.row.bundle)))
    try:
        await launch.start(program, handle.ns, handle.id, handle.row.bundle, options, config.timeouts.shim_start_s)
    except StatusError as error:
        log.warning("a shim cannot be raised", extra={"reason": error.message, "try": handle.raises})
        return False
    return True


def _shim_cgroup(path: str) -> str:
    """Of the options the container was created with."""
    try:
        options = json.loads(bundle.read_small(path, "options.json") or "{}")
    except ValueError:
        return ""
    return str(options.get("shim_cgroup") or "") if isinstance(options, dict) else ""
