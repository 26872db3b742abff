"""Starting the container again by policy: the terms, the counters, the plan; each step a fact on disk.

A restart is: the pause → counted, the old run deleted → `runc create` → created, a new incarnation → `runc start`. The
state file says before each step which one it is, so that a successor of a shim killed anywhere goes on with that step.
Loaded only where a policy was set.
"""

import os
import signal
import time

from shim import policy
from shim.bundle import remove
from shim.core.steps import Signal
from shim.errors import invalid_argument
from shim.policy import Backoff, Ended, Policy
from shim.task import creation, execs, runc
from shim.task.lifecycle import CREATED, STOPPED
from shim.task.pinning import pin, unpin
from shim.task.process import Process
from shim.task.saving import save, save_and_tell
from ttrpc.api import events, shim, wkt
from ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.core.loop import Timer
    from shim.core.steps import Handler
    from shim.task.container import Container
    from shim.task.exits import Exit
    from ttrpc.api.shim import RestartState, SetRestartRequest

VERSION = 1  # of what the state file has under `restart`
# The step of a restart that is under way.
DELETING, CREATING, STARTING = "deleting", "creating", "starting"
NS, MS_PER_S = 1_000_000_000, 1000
PAUSE_MAX_MS = 366 * 24 * 3600 * 1000
COUNT_MAX = 2**31


class Restart:
    """Owns the timer of the next restart, and the restart under way, whose end the calls of clients wait for.

    ``restarts`` counts every one that was begun, also those that failed; ``due_ns`` is on the clock of the boot, which
    is the successor's too and which nobody sets.
    """

    def __init__(self, container: "Container") -> None:
        self.container = container
        self.policy = Policy(policy.NO)
        self.backoff = Backoff(0.1, 60.0, 10.0)
        self.is_stopped = False
        self.restarts = 0
        self.in_a_row = 0
        self.phase = ""
        self.has_failed = False  # the last restart, before there was a container
        self.due_ns: int | None = None
        self.due_at_ns: int | None = None
        self.reason = ""  # why none is planned after the last end
        self.under_way: Signal | None = None
        self._is_doomed = False
        self._timer: Timer | None = None

    # --- what is asked

    def set(self, request: "SetRestartRequest", *, is_first: bool) -> None:
        """Take new terms, which were checked. They bear on the plan there is; if so asked, on an end that was left."""
        self.policy = Policy(request.policy, request.max_restarts)
        self.is_stopped = request.stopped
        self.backoff = Backoff(
            request.first_pause_ms / MS_PER_S,
            request.longest_pause_ms / MS_PER_S,
            request.reset_after_ms / MS_PER_S,
            request.budget,
        )
        if is_first:
            self.restarts, self.in_a_row = request.earlier_restarts, request.earlier_in_a_row
        if self.container.state == STOPPED and self.container.init.told.fired and (request.decide_now or self.due_ns):
            self._consider()
        save(self.container)

    def cancel(self, *, for_good: bool = False) -> bool:
        """The user signals or deletes it while it waits: drop what is planned; whether there was anything."""
        self._is_doomed = self._is_doomed or for_good
        if self.due_ns is None:
            return False
        self.is_stopped = True
        self._give_up("it is deleted" if for_good else "it was signalled while it waited", by_user=True)
        return True

    @property
    def is_between_runs(self) -> bool:
        """Whether the last run is being deleted, or is, and the next is not created."""
        return self.phase in (DELETING, CREATING)

    @property
    def is_planned(self) -> bool:
        """Whether the container is about to come back."""
        return self.due_ns is not None or self.under_way is not None

    def message(self) -> "RestartState":
        """As Info and SetRestart tell it."""
        made = shim.RestartState(
            policy=self.policy.name,
            max_restarts=self.policy.max_restarts,
            stopped=self.is_stopped,
            restarts=self.restarts,
            in_a_row=self.in_a_row,
            reason=self.reason,
        )
        if self.due_at_ns is not None:
            made.next_at.CopyFrom(wkt.timestamp(self.due_at_ns))
        return made

    def snapshot(self) -> "dict[str, Any]":
        """What a successor must know. A container that is not created any more was started, or has ended."""
        is_over = self.phase == STARTING and self.container.state != CREATED
        return {
            "version": VERSION,
            "policy": self.policy.name,
            "max_restarts": self.policy.max_restarts,
            "backoff": [self.backoff.min_s, self.backoff.max_s, self.backoff.reset_after_s, self.backoff.budget],
            "stopped": self.is_stopped,
            "restarts": self.restarts,
            "in_a_row": self.in_a_row,
            "phase": "" if is_over else self.phase,
            "has_failed": self.has_failed,
            "due_ns": self.due_ns,
            "due_at_ns": self.due_at_ns,
            "reason": self.reason,
        }

    # --- deciding

    def ended(self) -> None:
        """Init's exit was told."""
        self.phase, self.reason = "", ""
        self._consider()

    def _consider(self, failure: str = "") -> None:
        """Plan the next restart, keep the plan there is, or leave it; telling what is new."""
        record = self.container.init.exit
        if self._is_doomed or self.phase or record is None:
            return
        ran_for_ns = (
            0 if self.has_failed or record.started_at_ns is None else record.exited_at_ns - record.started_at_ns
        )
        is_known = record.code is not None or record.signal is not None
        status = record.status if is_known else None
        ended = Ended(status, ran_for_ns / NS, self.restarts, self.in_a_row)
        decision = policy.decide(self.policy, ended, self.backoff, is_stopped=self.is_stopped)
        self.in_a_row = decision.streak
        if decision.pause_s is not None:
            if self.due_ns is None:
                since_ns = time.time_ns() - record.exited_at_ns if not self.has_failed else 0
                self._plan(decision.pause_s, since_ns, failure or f"{_how(record)}; {decision.reason}")
        elif self.due_ns is not None or (decision.gave_up and decision.reason != self.reason):
            self._give_up(decision.reason, by_user=False)
        else:
            self.reason = decision.reason

    def _plan(self, pause_s: float, since_ns: int, reason: str) -> None:
        """Told once: the plan is on disk together with its event. The wall clock may have been set meanwhile."""
        pause_ns = int(pause_s * NS)
        left_ns = min(pause_ns, max(0, pause_ns - since_ns))
        self.reason = ""
        self.due_ns, self.due_at_ns = boot_ns() + left_ns, time.time_ns() + left_ns
        told = shim.Restarting(
            container_id=self.container.id,
            restart=self.restarts + 1,
            in_a_row=self.in_a_row,
            pause_ms=pause_ns // (NS // MS_PER_S),
            at=wkt.timestamp(self.due_at_ns),
            reason=reason,
        )
        save_and_tell(self.container, "/shimd/restarting", told)
        self._arm()

    def _give_up(self, reason: str, *, by_user: bool) -> None:
        self._drop_plan()
        self.reason = reason
        told = shim.RestartGaveUp(
            container_id=self.container.id, restarts=self.restarts, reason=reason, by_user=by_user
        )
        save_and_tell(self.container, "/shimd/restart-gave-up", told)

    def _arm(self) -> None:
        assert self.due_ns is not None
        delay_s = max(0.0, (self.due_ns - boot_ns()) / NS)
        self._timer = self.container.parts.loop.call_later(delay_s, self._begin)

    def _drop_plan(self) -> None:
        self.due_ns = self.due_at_ns = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- doing

    def _begin(self) -> None:
        self._timer = None
        self.under_way = Signal()
        self.container.parts.loop.spawn(self._restart(), self._done)

    def _done(self, _value: object, error: "BaseException | None") -> None:
        if error is not None:
            self.container.parts.log.failure("a restart by policy", error)
        under_way, self.under_way = self.under_way, None
        if under_way is not None:
            under_way.fire()

    def _restart(self) -> "Handler":
        """From the step at which it is to its end. One that fails is counted, and followed by the next."""
        container = self.container
        yield from container.lock.acquire()
        try:
            if not self.phase:
                if self.due_ns is None or container.state != STOPPED:
                    return
                self._drop_plan()
                self.restarts, self.in_a_row, self.phase = self.restarts + 1, self.in_a_row + 1, DELETING
                save(container)
            if self.phase == DELETING:
                yield from self._delete_old()
            if self.phase == CREATING:
                yield from self._create_new()
        except Exception as error:  # noqa: BLE001 - of a bug, or for want of memory: what failed is tried again
            if not isinstance(error, (OSError, StatusError)):
                container.parts.log.failure("a restart by policy", error)
            self._failed(str(error) or type(error).__name__)
            return
        finally:
            container.lock.release()
        if self.phase == STARTING:
            yield from self._start()

    def _failed(self, reason: str) -> None:
        """There is no container: how the last one ended stays what is known of it."""
        self.container.parts.log.warning(f"restart {self.restarts} failed: {reason}")
        self.phase, self.has_failed = "", True
        self._consider(f"restart {self.restarts} failed: {reason}")
        save(self.container)

    def _delete_old(self) -> "Handler":
        """What `Delete` does, but that rootfs and shim stay. Idempotent up to its event, which is told once."""
        container, old = self.container, self.container.init
        processes = (*container.execs.values(), old)
        for process in processes:
            if process.stdio is not None:
                yield from process.stdio.finish()
        yield from container.run_delete()
        for process in processes:
            process.close(container.parts)
            if process is not old:
                execs.remove_files(container.parts, process.exec_id)
                if not process.told.fired:
                    process.told.fire(None)
        container.execs.clear()
        container.forget_cgroup()
        remove(container.parts.bundle.file("init.pid"))
        deleted = events.TaskDelete(container_id=container.id, pid=old.pid, exit_status=old.status)
        deleted.exited_at.CopyFrom(wkt.timestamp(old.exited_at_ns))
        self.phase = CREATING
        save_and_tell(container, "/tasks/delete", deleted)

    def _create_new(self) -> "Handler":
        """A container of the same bundle. The old run stays the present one until it is there."""
        container = self.container
        new = Process("", container.init.request)

        def born() -> None:
            container.parts.incarnation = f"{policy.journal_of(container.parts.incarnation)}.{self.restarts}"
            container.init = new
            container.oom_count, container.oom_at = 0, None
            self.phase, self.has_failed = STARTING, False

        try:
            container.reserve_exit("")
            stdio = container.open_stdio(new)
            yield from stdio.prepare()
            yield from creation.bring_up(container, new, stdio, (), born)
        except Exception:
            if container.init is not new:
                yield from undo(container)
                unpin(container, new)
                new.close(container.parts)
            raise

    def _start(self) -> "Handler":
        """One that cannot be started is killed: its exit, which is told as any, leads to the next restart."""
        try:
            yield from self.container.start()
            self.phase = ""
            self.container.parts.log.info(f"restart {self.restarts} by policy, pid {self.container.init.pid}")
        except StatusError as error:
            self.container.parts.log.warning(f"restart {self.restarts} failed: {error}")
            if self.container.init.is_alive:
                self.container.init.signal(signal.SIGKILL)

    # --- a successor's part

    def settle_create(self) -> "Handler":
        """Take a `runc create` that was under way for done if runc got so far, else undo it: before streams are opened.

        With a terminal it is undone: the terminal went with the shim that was to get it.
        """
        container = self.container
        if self.phase != CREATING:
            return
        save(container)  # our pid: should we die too, it is our runtime calls that are to be waited for
        status = yield from container.runc.status(container.parts.reaper)
        new = Process("", container.init.request)
        pid = creation.recorded_pid(container.parts.bundle)
        if status == "created" and pid and not new.request.terminal and new.identify(pid):
            container.parts.incarnation = f"{policy.journal_of(container.parts.incarnation)}.{self.restarts}"
            container.init, container.oom_count, container.oom_at = new, 0, None
            self.phase, self.has_failed = STARTING, False
            new.lifecycle.record("created")
            yield from pin(container, new)
            save_and_tell(container, "/tasks/create", creation.created_event(container, ()))
        else:
            new.close(container.parts)
            yield from undo(container)

    def resume(self) -> None:
        """Go on where the shim before this one stopped. Order: the container is settled, nobody is served yet."""
        container = self.container
        if self.phase == STARTING and container.state != CREATED:
            self.phase = ""
        if self.phase:
            self._begin()
        elif container.state == STOPPED and container.init.exit is not None:
            if self.due_ns is not None:
                self._arm()
            else:
                self._consider()


def undo(container: "Container") -> "Handler":
    """Leave nothing of a container that was not completely created, but the rootfs and the last exit."""
    parts = container.parts
    try:
        yield from container.runc.call(
            parts.reaper, "delete", "delete", "--force", container.id, deadline_s=runc.DELETE_S
        )
    except StatusError as error:
        if not runc.is_gone(error):
            parts.log.warning(f"undoing a failed restart: {error}")
    container.forget_cgroup()
    remove(parts.bundle.file("init.pid"))
    for stream in ("stdin", "stdout", "stderr"):
        remove(os.path.join(parts.bundle.io_dir, f"init.{stream}"))


def read(container: "Container", snapshot: "dict[str, Any]") -> "Restart | None":
    """What the shim before this one left; None when it is of a version not known here: then a new one must be set."""
    if snapshot.get("version") != VERSION:
        container.parts.log.warning(f"a restart policy of version {snapshot.get('version')} is not understood")
        return None
    made = Restart(container)
    made.policy = Policy(str(snapshot["policy"]), int(snapshot["max_restarts"]))
    made.backoff = Backoff(*snapshot["backoff"])
    made.is_stopped = bool(snapshot["stopped"])
    made.restarts, made.in_a_row = int(snapshot["restarts"]), int(snapshot["in_a_row"])
    made.phase, made.has_failed = str(snapshot["phase"]), bool(snapshot["has_failed"])
    made.due_ns, made.due_at_ns, made.reason = snapshot["due_ns"], snapshot["due_at_ns"], str(snapshot["reason"])
    return made


def _how(record: "Exit") -> str:
    if record.signal is not None:
        return f"it ended by signal {record.signal}"
    return f"it ended with code {record.code}" if record.code is not None else "nobody knows how it ended"


def check(request: "SetRestartRequest") -> None:
    """Raises: InvalidArgument naming the field."""
    if request.policy not in policy.NAMES:
        raise invalid_argument(f"restart policy {request.policy!r} is none of {', '.join(policy.NAMES)}")
    if request.max_restarts and request.policy != policy.ON_FAILURE:
        raise invalid_argument(f"max_restarts is for {policy.ON_FAILURE}, not for {request.policy}")
    if request.policy != policy.NO and not 0 < request.first_pause_ms <= request.longest_pause_ms <= PAUSE_MAX_MS:
        raise invalid_argument(
            f"pauses of {request.first_pause_ms} to {request.longest_pause_ms} ms: "
            f"give 0 < first_pause_ms <= longest_pause_ms <= {PAUSE_MAX_MS}"
        )
    for name in ("max_restarts", "budget", "earlier_restarts", "earlier_in_a_row"):
        if getattr(request, name) > COUNT_MAX:
            raise invalid_argument(f"{name} of {getattr(request, name)} is more than {COUNT_MAX}")


def boot_ns() -> int:
    """Time since the machine was started, sleep included: clock_gettime(2), CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
