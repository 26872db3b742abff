"""Which task is where: every handle by namespace and id, found again after a restart of the daemon."""

import dataclasses
import logging
import os

import trio

from daemon.config import Config
from daemon.errors import not_found
from daemon.procfs import Identity
from daemon.shims import bundle, evidence, launch, recovery
from daemon.shims.client import earlier
from daemon.shims.handle import Handle, Health
from daemon.shims.supervisor import Supervisors
from daemon.store import events as journal
from daemon.store import tasks
from daemon.store.database import Database
from daemon.store.records import StoredExit
from ttrpc.errors import StatusError

log = logging.getLogger(__name__)


class Registry:
    """Owns the handles. Tasks of every namespace are keyed by (namespace, id)."""

    def __init__(
        self, config: Config, database: Database, nursery: trio.Nursery, boot_id: str, publish_binary: str
    ) -> None:
        self.config = config
        self.database = database
        self.nursery = nursery
        self.boot_id = boot_id
        self.publish_binary = publish_binary
        self.handles: dict[tuple[str, str], Handle] = {}
        self.strays: dict[tuple[str, str], str] = {}  # bundles nobody has on record, and why they stay
        self.is_recovering = True
        self._doomed: list[str] = []
        self.adopted = 0
        self.supervisors = Supervisors(config, database, boot_id, nursery, self.program_of)
        self.supervisors.on_gone = self.forget

    def program_of(self, handle: Handle) -> launch.Program:
        """What runs a task's shim: the program recorded at its creation, whatever the configuration says by now."""
        row = handle.row
        is_foreign = launch.is_foreign(row.runtime, row.shim_path)
        return launch.Program(
            row.shim_path,
            self.config.grpc_address,
            self.publish_binary,
            self.config.shim_socket_dir,
            debug=log.isEnabledFor(logging.DEBUG),
            keeper=self.config.keeper.enabled,
            ttrpc_address=self.config.socket_path if is_foreign else "",
            spared=self._shims_of_others(handle) if is_foreign else frozenset(),
        )

    def _shims_of_others(self, handle: Handle) -> frozenset[Identity]:
        """containerd's shim serves several containers when their specs name a group: its end would be theirs."""
        rows = [other.row for other in self.handles.values() if other is not handle]
        return frozenset(Identity(row.shim_pid, row.shim_start_ticks) for row in rows if row.shim_pid)

    def sender(self, ns: str, container_id: str, pid: int) -> Handle | None:
        """The task of that container, if it is its present shim that speaks: a process with this pid."""
        handle = self.handles.get((ns, container_id))
        if handle is None:
            return None
        known = {handle.row.shim_pid, handle.info.pid if handle.info is not None else 0}
        return handle if pid in known else None

    # --- after a restart of the daemon

    def load(self) -> None:
        """Make a handle of every task on record: to be done before anybody can ask for one."""
        for row in self.database.read(tasks.list_all):
            handle = Handle(row)
            handle.is_after_reboot = row.boot_id != self.boot_id
            self.handles[row.ns, row.id] = handle
        self._doomed = bundle.list_doomed(self.config.bundles_dir)

    async def recover(self) -> None:
        """Supervise every task on record, then look at what has no record. Returns once each is decided about.

        Blocks: as long as the slowest budget; the API is served meanwhile.
        """
        found = tuple(self.handles.values())
        for handle in found:
            self.nursery.start_soon(self.supervisors.run_found, handle)
        for handle in found:
            await handle.wait_until(lambda handle=handle: handle.is_settled or handle.is_deleted)  # type: ignore[misc]
        self.adopted = sum(handle.health is Health.SERVING for handle in found)
        try:
            await self._tidy()
        except (StatusError, OSError) as error:  # what is left lying harms nobody until the next start
            log.error("what is left from before could not be tidied", extra={"reason": str(error)})
        self.is_recovering = False

    async def _tidy(self) -> None:
        """Look at what has no record. Raises: OSError; StoreFull, StoreFailed."""
        await trio.to_thread.run_sync(bundle.remove_doomed, self._doomed)
        await self._look_at_strays()
        await self.database.write(tasks.forget_orphan_cursors)

    async def _look_at_strays(self) -> None:
        for key in await trio.to_thread.run_sync(bundle.list_bundles, self.config.bundles_dir):
            if key in self.handles:
                continue
            path = self.config.bundle(*key)
            found = await trio.to_thread.run_sync(evidence.gather, path, None, self.boot_id)
            decision = recovery.decide(recovery.Facts(None, shim=found.shim, init=found.init))
            extra = {"ns": key[0], "id": key[1], "bundle": path, "reason": decision.reason}
            if decision.verdict is recovery.Verdict.DISCARD and key not in self.handles:
                log.warning("removing a bundle that is not on record", extra=extra)
                self.strays[key] = "it is being removed"  # nobody may create it anew meanwhile
                try:
                    await trio.to_thread.run_sync(bundle.remove, path)
                    self.strays.pop(key, None)
                    continue
                except StatusError as error:
                    decision = dataclasses.replace(decision, reason=error.message)
            log.error("a bundle is not on record", extra=extra)
            self.strays[key] = decision.reason

    def present_strays(self) -> dict[tuple[str, str], str]:
        """Bundles that nobody has on record, and why they stay; not those that somebody has removed since."""
        for key in [key for key in self.strays if not os.path.lexists(self.config.bundle(*key))]:
            del self.strays[key]
        return self.strays

    # --- finding

    def known(self, ns: str, container_id: str) -> Handle | None:
        return self.handles.get((ns, container_id))

    async def find(self, ns: str, container_id: str, deadline: float | None = None) -> Handle:
        """The task of a container, once recovery has decided about it.

        Raises: NotFound; Unavailable when recovery takes too long with it.
        """
        handle = self.handles.get((ns, container_id))
        if handle is None:
            raise not_found(f"task {container_id} not found")
        # Its supervisor spends a budget on connecting, one on each of two answers, and may wait for its turn.
        await handle.wait_settled(earlier(4 * self.config.recovery.budget_s, deadline))
        handle.require_present()
        return handle

    def of_namespace(self, ns: str) -> list[Handle]:
        return [handle for handle in self.handles.values() if handle.ns == ns]

    def stored_exit(self, handle: Handle, exec_id: str = "") -> StoredExit | None:
        """The exit of one process of this task, if it is in the store."""
        return self.exit_of(handle, handle.row.incarnation, exec_id)

    def exit_of(self, handle: Handle, incarnation: str, exec_id: str = "") -> StoredExit | None:
        """The same of an earlier task of the same container, such as one its policy has restarted since."""
        return self.database.read(lambda c: journal.last_exit(c, handle.ns, handle.id, incarnation, exec_id))

    def forget(self, handle: Handle) -> None:
        """Drop a deleted task."""
        handle.restarter.cancel()
        if self.handles.get((handle.ns, handle.id)) is handle:
            del self.handles[handle.ns, handle.id]
