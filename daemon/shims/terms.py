"""Restart policies handed to shims that act on them by themselves: shim/SHIM.md, "Restart by policy".

Labels are the wish, the shim keeps what it was told. It is told at Create, when labels change, and whenever it was
found again, after all it had to tell is stored.
"""

import contextlib
import logging
from typing import TYPE_CHECKING

import trio

from daemon import log as logs
from daemon import restart
from daemon.config import Config
from daemon.config import Restart as Limits
from daemon.shims import bundle
from daemon.shims.handle import Handle
from daemon.store import containers
from daemon.store.database import Database
from daemon.store.records import TaskRow
from shim import policy
from ttrpc.api import shim, wkt
from ttrpc.errors import StatusError
from ttrpc.status import Code

if TYPE_CHECKING:
    from ttrpc.api.containers import Container
    from ttrpc.api.shim import SetRestartRequest

log = logging.getLogger(__name__)

PASSING = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED)  # refusals that are worth another try
FEATURE = "restart"  # of shim.v1's Info
MS_PER_S = 1000


def acts_itself(handle: Handle) -> bool:
    """Whether the task's shim serves, and restarts its container by itself once it has been told to."""
    return handle.client is not None and handle.info is not None and FEATURE in handle.info.features


def terms_of(container: "Container", row: TaskRow, limits: Limits, *, decide_now: bool) -> "SetRestartRequest":
    """What the labels ask for, as the shim is told it. Pure. Raises: InvalidArgument for labels nobody can read."""
    wanted = restart.policy_of(container.labels)
    longest_ms = max(1, round(limits.backoff_max_s * MS_PER_S))
    return shim.SetRestartRequest(
        policy=wanted.name,
        max_restarts=wanted.max_restarts,
        stopped=restart.is_explicitly_stopped(container.labels),
        first_pause_ms=min(longest_ms, max(1, round(limits.backoff_min_s * MS_PER_S))),
        longest_pause_ms=longest_ms,
        reset_after_ms=round(limits.reset_after_s * MS_PER_S),
        budget=limits.budget,
        earlier_restarts=row.restarts,
        earlier_in_a_row=row.streak,
        decide_now=decide_now,
    )


async def give(
    handle: Handle, database: Database, limits: Limits, timeout_s: float, *, decide_now: bool = False
) -> None:
    """Tell the shim the terms its container's labels are; nothing where there are none and never were.

    The spec goes with them: the next run begins from the bundle, not from us.
    Raises: StatusError of the shim; InvalidArgument; OSError when the spec cannot be written.
    """
    client = handle.client
    if client is None or not acts_itself(handle):
        return
    container = database.read(lambda connection: containers.get(connection, handle.ns, handle.id))
    if container is None:
        return
    request = terms_of(container, handle.row, limits, decide_now=decide_now)
    if request.policy == policy.NO and not handle.has_terms:
        return
    if request.policy != policy.NO:
        bundle.rewrite_spec(handle.row.bundle, container.spec.value)
    state = await client.shim("SetRestart", request, timeout_s)
    handle.has_terms = True
    handle.next_restart_at_ns = wkt.nanoseconds(state.next_at) if state.HasField("next_at") else None
    handle.tell()


async def tell(handle: Handle, database: Database, config: Config, decide_now: bool, tried: trio.Event) -> None:
    """Give the terms until the shim that is connected now has taken them; another is given them as it is found.

    ``tried`` is set after the first attempt, whatever came of it.
    """
    client, pause_s = handle.client, config.recovery.retry_min_s
    with logs.begin(ns=handle.ns, id=handle.id):
        try:
            while not handle.is_deleted and handle.client is client:
                try:
                    await give(handle, database, config.restart, config.timeouts.call_s, decide_now=decide_now)
                    break
                except (StatusError, OSError) as error:
                    log.warning("its shim does not know of it yet", extra={"reason": str(error)})
                    if isinstance(error, StatusError) and error.code not in PASSING:
                        break
                tried.set()
                await trio.sleep(pause_s)
                pause_s = min(pause_s * 2, config.recovery.retry_max_s)
        except Exception:  # a bug met in one task's affairs is that task's trouble
            log.exception("its shim is not told")
        finally:
            tried.set()


async def withdraw(handle: Handle, timeout_s: float) -> None:
    """Have the shim restart nothing any more, as the container is to go. A shim that does not answer is no obstacle."""
    if handle.client is not None and handle.has_terms and acts_itself(handle):
        with contextlib.suppress(StatusError):
            await handle.client.shim("SetRestart", shim.SetRestartRequest(policy=policy.NO), timeout_s)
