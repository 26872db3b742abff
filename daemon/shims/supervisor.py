"""One task's supervisor: ask, decide, act, again, for as long as the task is there.

The same loop serves a task found after a restart of the daemon and one whose shim is lost while we run.
"""

import contextlib
import dataclasses
import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from daemon import log as logs
from daemon import procfs
from daemon.config import Config
from daemon.errors import unavailable
from daemon.shims import (
    asking,
    ending,
    evidence,
    foreign,
    found_exits,
    ingest,
    launch,
    raising,
    recovery,
    removal,
    terms,
)
from daemon.shims.asking import Found
from daemon.shims.client import ShimClient
from daemon.shims.handle import Handle, Health
from daemon.shims.recovery import Decision, Verdict
from daemon.shims.turnstile import Turnstile
from daemon.store import events as journal
from daemon.store import tasks
from daemon.store.database import Database
from daemon.store.records import STOPPED, TaskRow
from shim import policy
from ttrpc.aio import open_client
from ttrpc.errors import ConnectionLost, StatusError, TtrpcError

if TYPE_CHECKING:
    from ttrpc.api.shim import InfoResponse

log = logging.getLogger(__name__)

# A shim that has not answered by then gives its place in the queue to the next; its budget goes on.
PATIENCE_S = 0.2
# Between two looks at a container that lives without a shim, where no pidfd can tell of its end.
WATCH_EVERY_S = 5.0


def is_later_run(info: "InfoResponse", row: TaskRow) -> bool:
    """Whether the shim has restarted its container since the row was written."""
    is_its = policy.journal_of(info.incarnation) == policy.journal_of(row.incarnation)
    return is_its and policy.run_of(info.incarnation) > policy.run_of(row.incarnation)


class Supervisors:
    """What all supervisors share. `on_stopped` is told of a task that is over, `on_gone` of one forgotten."""

    def __init__(
        self,
        config: Config,
        database: Database,
        boot_id: str,
        nursery: trio.Nursery,
        program_of: Callable[[Handle], launch.Program],
    ) -> None:
        self.config = config
        self.database = database
        self.boot_id = boot_id
        self.nursery = nursery
        self.program_of = program_of
        self.turnstile = Turnstile(config.recovery.parallel, PATIENCE_S)
        self.on_stopped: Callable[[Handle], None] = lambda _handle: None
        self.on_gone: Callable[[Handle], None] = lambda _handle: None

    # --- the two ways to begin

    async def run_found(self, handle: Handle) -> None:
        """Supervise a task found in the store, until it is gone or nothing is left to wait for."""
        with logs.begin(ns=handle.ns, id=handle.id), handle.supervisor:
            await self._keep(handle)

    async def start_newborn(self, handle: Handle) -> ShimClient:
        """Connect to a shim just started and supervise it from here on; returns once it has told who it is.

        Raises: Unavailable.
        """
        handle.supervisor = trio.CancelScope()
        client: ShimClient = await self.nursery.start(self._run_newborn, handle)
        return client

    async def _run_newborn(self, handle: Handle, *, task_status: Any) -> None:
        is_started = False
        with logs.begin(ns=handle.ns, id=handle.id), handle.supervisor:
            timeout_s = self.config.timeouts.connect_s
            try:
                async with open_client(handle.row.address, connect_timeout_s=timeout_s) as raw:
                    client = ShimClient(raw, handle.name)
                    info = await asking.info_of(client, handle.row, timeout_s)
                    is_started = True
                    task_status.started(client)
                    await self._serve(handle, client, info)
            except (OSError, TtrpcError) as error:
                if not is_started:
                    raise unavailable(f"{handle.name}: its shim was started but does not answer: {error}") from None
                self._lost(handle, error)
            except Exception as error:
                if not is_started:
                    raise
                self._failed(handle, error)
            await self._keep(handle)

    # --- the loop

    async def _keep(self, handle: Handle) -> None:
        pause_s = self.config.recovery.retry_min_s
        while not handle.is_deleted:
            began = trio.current_time()
            try:
                is_done = await self._round(handle)
            except (OSError, TtrpcError) as error:
                self._lost(handle, error)
                is_done = False
            except Exception as error:  # noqa: BLE001 - logged
                self._failed(handle, error)
                is_done = False
            if is_done:
                return
            if handle.health is Health.CONNECTING:
                # Lost, which is looked into at once; one that is lost again and again does not keep us busy.
                pause_s = self.config.recovery.retry_min_s
                await trio.sleep(max(0.0, pause_s - (trio.current_time() - began)))
                continue
            await trio.sleep(pause_s)
            pause_s = min(pause_s * 2, self.config.recovery.retry_max_s)

    def _lost(self, handle: Handle, error: Exception) -> None:
        if isinstance(error, ConnectionLost):
            # The next round finds out what it means; whoever calls meanwhile waits for that.
            handle.now(Health.CONNECTING, f"the connection was lost: {error}")
            level = logging.DEBUG if handle.is_busy else logging.WARNING  # whoever is at it may have ended it
            log.log(level, "lost the connection to a shim", extra={"reason": str(error)})
            return
        handle.now(Health.UNREACHABLE, str(error))
        log.warning("a shim cannot be supervised", extra={"reason": str(error)})

    def _failed(self, handle: Handle, error: Exception) -> None:
        """A bug met in one task's affairs is that task's trouble, not everybody's."""
        log.exception("supervising failed", exc_info=error)
        handle.now(Health.UNREACHABLE, f"internal error: {error!r}")

    async def _round(self, handle: Handle) -> bool:
        """Ask, decide, act. True: nothing more is to be done for this task."""
        async with contextlib.AsyncExitStack() as stack:
            place = await self.turnstile.enter(self.nursery)
            try:
                found = await self._ask(stack, handle)
            finally:
                place.leave()
            decision = recovery.decide(found.facts)
            if decision.verdict is Verdict.ADOPT and found.client is not None:
                await self._adopt(handle, found, decision)
                self.nursery.start_soon(self._catch_up, handle, found)
                await self._serve(handle, found.client, found.info)
                return False
            if decision.verdict is Verdict.RETRY:
                self._have_it_listen(handle)
                handle.now(Health.UNREACHABLE, f"{decision.reason} ({found.reason})")
                return False
            if decision.verdict is Verdict.RAISE:
                await self._raise(handle, decision)
                return False
            if decision.verdict is Verdict.WATCH:
                await self._watch(handle, decision)
                return False
            return await self._act_exclusively(handle, found, decision)

    async def _ask(self, stack: contextlib.AsyncExitStack, handle: Handle) -> Found:
        budget_s, is_stored = self.config.recovery.budget_s, self._stored_exit(handle)
        found = await asking.ask(stack, self._addressed(handle), self.boot_id, budget_s, exit_is_stored=is_stored)
        if handle.raises < raising.TRIES_MAX or found.facts.init is recovery.Init.ALIVE:
            return found
        return dataclasses.replace(found, facts=dataclasses.replace(found.facts, can_raise=False))

    def _have_it_listen(self, handle: Handle) -> None:
        """Tell a shim whose socket somebody removed; see listening.py. It harms no shim that is only silent.

        Not while an operation is under way: that may be ending it, and its socket goes first.
        """
        address, shim = self._addressed(handle).address, evidence.present_shim(handle.row)
        if (
            shim is not None
            and address
            and not handle.is_busy
            and not os.path.lexists(address)
            and not launch.is_foreign(handle.row.runtime, handle.row.shim_path)
        ):
            log.warning("the socket of a shim is gone; it is told", extra={"address": address})
            procfs.kill(shim, signal.SIGURG)

    def _addressed(self, handle: Handle) -> TaskRow:
        """The row with the address of its shim, also when that was not recorded yet."""
        address = asking.address_of(handle.row, self.config.shim_socket_dir, self.config.grpc_address)
        return dataclasses.replace(handle.row, address=address)

    def _stored_exit(self, handle: Handle) -> bool:
        """Whether this task's own exit is in the store."""
        row = handle.row
        found = self.database.read(lambda c: journal.last_exit(c, row.ns, row.id, row.incarnation, ""))
        return found is not None

    # --- a shim that serves

    async def _adopt(self, handle: Handle, found: Found, decision: Decision, *, is_caught_up: bool = False) -> None:
        """Put on record what the shim says of itself and its container.

        A run its shim has restarted while we were away is put down by the journal's records, in their order.
        """
        changes: dict[str, object] = {"boot_id": self.boot_id}
        is_told = not is_caught_up and found.info is not None and is_later_run(found.info, handle.row)
        if decision.state is not None and not is_told:
            changes["state"] = decision.state
        if found.info is not None:
            if not is_told:
                changes["incarnation"] = found.info.incarnation
            known = procfs.identify(found.info.pid)
            if known is not None:
                changes["shim_pid"], changes["shim_start_ticks"] = known.pid, known.start_ticks
        if found.state is not None and found.state.pid and decision.state != STOPPED and not is_told:
            init = evidence.identify_init(handle.row.bundle, found.state.pid)
            if init is not None:
                changes["pid"], changes["pid_start_ticks"] = init.pid, init.start_ticks
        changes["address"] = self._addressed(handle).address
        if any(getattr(handle.row, name) != value for name, value in changes.items()):
            handle.committed(
                await self.database.write(lambda connection: tasks.update(connection, handle.ns, handle.id, **changes))
            )
        log.info("adopted", extra={"state": handle.row.state, "shim_pid": handle.row.shim_pid})

    async def _catch_up(self, handle: Handle, found: Found) -> None:
        """Once all is stored that was told while we were away: the row is the present run's, the terms are ours."""
        client, info = found.client, found.info
        if client is None or info is None or client.is_foreign:
            return
        with logs.begin(ns=handle.ns, id=handle.id):
            await handle.wait_until(
                lambda: handle.is_deleted or handle.client is not client or handle.stored_seq >= info.journal_seq
            )
            limits, timeout_s = self.config.restart, self.config.timeouts.call_s
            try:
                if handle.client is client and is_later_run(
                    info, handle.row
                ):  # its creation is in a gap of the journal
                    state = await asking.state_of(client, handle.id, timeout_s)
                    facts = dataclasses.replace(found.facts, row=handle.row.state, task=asking.task_of(state))
                    now = dataclasses.replace(found, state=state, facts=facts)
                    await self._adopt(handle, now, recovery.decide(facts), is_caught_up=True)
                if handle.client is client and not handle.is_deleted:
                    await terms.give(handle, self.database, limits, timeout_s, decide_now=True)
            except (OSError, TtrpcError) as error:
                log.warning("the terms of its restart are not told yet", extra={"reason": str(error)})
            except Exception:  # a bug met in one task's affairs is that task's trouble
                log.exception("catching up failed")

    async def _serve(self, handle: Handle, client: ShimClient, info: "InfoResponse | None") -> None:
        """Let calls through and store its events until the connection is lost.

        Raises: ConnectionLost, StatusError.
        """
        handle.now_serving(client, info)
        incarnation = info.incarnation if info is not None else handle.row.incarnation
        if handle.row.state == STOPPED and self._stored_exit(handle):
            self.on_stopped(handle)
        follow = foreign.follow if client.is_foreign else ingest.follow
        while True:
            try:
                await follow(handle, client, incarnation, self.database, self.on_stopped)
            except StatusError as error:
                # Left unread while the disk was full, or refused: the cursor says where to go on.
                log.warning("following a shim's journal failed", extra={"reason": error.message})
            if client.raw.is_closed:
                break
            await trio.sleep(self.config.recovery.retry_min_s)
        await client.raw.wait_closed()
        raise ConnectionLost("the shim closed it")

    async def recognise(self, handle: Handle) -> None:
        """Another shim serves on the connection that its predecessor had: put on record who it is."""
        client, timeout_s = handle.client, self.config.timeouts.state_s
        if client is None:
            return
        try:
            info = await asking.info_of(client, handle.row, timeout_s)
            known = procfs.identify(info.pid)
            if known is None or handle.client is not client:
                return
            handle.info = info
            changes: dict[str, Any] = {"shim_pid": known.pid, "shim_start_ticks": known.start_ticks}
            row = await self.database.write(lambda c: tasks.update(c, handle.ns, handle.id, **changes))
            if row is not None and not handle.is_deleted:
                handle.committed(dataclasses.replace(handle.row, **changes))
            log.info("another shim serves", extra={"ns": handle.ns, "id": handle.id, "shim_pid": known.pid})
        except (OSError, TtrpcError) as error:  # it will be asked again
            log.debug("a shim does not say who it is", extra={"id": handle.id, "reason": str(error)})

    # --- a shim that is gone

    async def _raise(self, handle: Handle, decision: Decision) -> None:
        """Start a successor; the next round finds it. Calls wait for that, but not for one that is to come later."""
        retry = self.config.recovery
        pause_s = raising.pause_s(handle.raises, retry.retry_min_s, retry.retry_max_s)
        if pause_s:
            handle.now(Health.GONE, f"{decision.reason}, again and again")
            log.error("no shim lives long enough", extra={"raised": handle.raises, "again_in_s": pause_s})
            await trio.sleep(pause_s)
        log.warning("raising a shim", extra={"reason": decision.reason})
        handle.now(Health.CONNECTING, decision.reason)
        if not await raising.raise_shim(handle, self.program_of(handle), self.config):
            handle.now(Health.UNREACHABLE, decision.reason)

    async def _watch(self, handle: Handle, decision: Decision) -> None:
        """Wait for the end of a container that lives without a shim."""
        handle.now(Health.GONE, decision.reason)
        log.error("a container lives without its shim")
        init = evidence.recorded_init(handle.row, handle.row.bundle)
        if init is not None:
            while not await procfs.wait_gone(init, WATCH_EVERY_S):
                pass

    async def _act_exclusively(self, handle: Handle, found: Found, decision: Decision) -> bool:
        """Do what the decision says; after an operation on the task that was under way, look again first."""
        had_to_wait = handle.is_busy
        async with handle.exclusively(decision.verdict.value, self.config.timeouts.busy_s):
            if had_to_wait:
                return False
            log.info("recovery: %s", decision.verdict.value, extra={"reason": decision.reason, "shim": found.reason})
            if decision.verdict in (Verdict.RECORD_EXIT, Verdict.RECORD_UNKNOWN):
                await self._record_exit(handle, found, decision)
            else:
                await self._clear(handle, found)
            return True

    async def _record_exit(self, handle: Handle, found: Found, decision: Decision) -> None:
        """Store the exits the bundle has on record; the row is stopped."""
        records = list(found.evidence.exits) if found.evidence is not None else []
        row = self._addressed(handle)
        if decision.verdict is Verdict.RECORD_UNKNOWN:
            records = [*(record for record in records if record.exec_id), found_exits.unknown_exit(row)]
        journals = ("", policy.journal_of(row.incarnation))
        mine = [each for each in records if policy.journal_of(each.incarnation) in journals or not row.incarnation]
        if decision.is_cleared:
            await ending.clear(row, found.client, self.program_of(handle), self.config.timeouts.shim_delete_s)
        handle.committed(
            await self.database.write(lambda connection: found_exits.store(connection, row, mine, self.boot_id))
        )
        handle.now(Health.GONE, decision.reason)
        self.on_stopped(handle)

    async def _clear(self, handle: Handle, found: Found) -> None:
        """Finish a delete (what its shim had to tell is stored already), or forget what was never born."""
        row = self._addressed(handle)
        await ending.clear(row, found.client, self.program_of(handle), self.config.timeouts.shim_delete_s)
        await removal.forget(self.database, row, self.config.root_dir)
        handle.committed(None)
        self.on_gone(handle)
