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

# A container whose shim cannot be raised so often is watched instead, until the daemon is started again.
TRIES_MAX = 3


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
