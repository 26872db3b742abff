"""One slot of the storm: a container's whole life by the API, the look at what became of it, then the next one."""

import json
import signal
import time
from typing import TYPE_CHECKING

from bench.storm import plans
from bench.storm.asking import CONTAINERS, SHIMD, TASKS, Asker, Stuck
from bench.storm.field import Field
from bench.storm.plans import Act, Life
from bench.storm.truth import Log
from bench.storm.verdicts import is_hung_up, look_at_events, look_at_exec, look_at_lines, look_at_status
from tests.support.shimbox import make_process, make_spec
from ttrpc.api import containers, process, shimd, tasks, wkt
from ttrpc.errors import StatusError

if TYPE_CHECKING:
    from ttrpc.api.tasks import CreateTaskRequest

RUNTIME = "io.containerd.shimd.v2"
SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
MEMORY_BYTES = (64 << 20, 128 << 20)
BIRTH_S = 30.0  # for a container to have begun, once its start was answered


class Slot:
    """Leads one container after the other through its life until the storm is over. Owns its client."""

    def __init__(self, field: Field, number: int) -> None:
        self.field = field
        self.number = number
        self.asker = Asker(field.daemon)
        self.doing = "nothing yet"
        self.name = ""

    def run(self) -> None:
        """The thread's work."""
        number = 0
        try:
            while not self.field.over.is_set():
                self.live(plans.life_of(self.field.seed, self.number, number, self.field.pace_s))
                number += 1
        finally:
            self.field.tally.add("cut_calls", self.asker.cut_calls)
            self.asker.close()

    def live(self, life: Life) -> None:
        """One life. Whatever goes wrong is counted, its evidence kept, and the container taken away by force."""
        field, faults_before = self.field, len(self.field.tally.failures)
        field.tally.add("containers")
        self.name = life.name
        try:
            self._live(life)
        except (Stuck, StatusError) as error:
            if not self._was_hung_up(life):
                kind = "stuck" if isinstance(error, Stuck) else "refused"
                field.fail(kind, life.name, f"{life.name}, at {self.doing}: {error}")
        finally:
            if len(field.tally.failures) != faults_before:
                self._force(life)
            field.truth.forget(life.name)
            field.let_go(life.name)

    def _live(self, life: Life) -> None:
        asker, field, name = self.asker, self.field, life.name
        self.doing = "create"
        asker.create_container(self._record(life))
        asker.create_task(self._create_request(life))
        self.doing = "start"
        pid = asker.start(name)
        executed: list[int] = []
        switches = 0
        for number, act in enumerate(life.acts):
            if field.over.wait(act.pause_s):
                break
            self.doing = act.kind
            if act.kind == plans.EXEC:
                executed.append(number)
                self._exec(life, number, act)
            elif act.kind == plans.PAUSE:
                switches += self._pause(name)
            elif act.kind == plans.UPDATE:
                self._update(life, act)
            self._look_at_pid(life, pid)
        seen = self._end(life)
        self.doing = "wait"
        answered = asker.wait(name)
        if self._was_hung_up(life):
            return
        look_at_status(field, life, answered)
        look_at_lines(field, life, seen)
        for number in executed:
            look_at_exec(field, life, number)
        self.doing = "delete"
        field.hold_shim_log(name)
        asker.delete("Delete", tasks.DeleteTaskRequest(container_id=name))
        asker.delete("Delete", containers.DeleteContainerRequest(id=name), CONTAINERS)
        look_at_events(field, life, executed, switches)

    # --- parts of a life

    def _was_hung_up(self, life: Life) -> bool:
        """Whether it ended with its terminal; then there is nothing more to look at."""
        if not is_hung_up(self.field, life):
            return False
        self.field.tally.add("terminals_hung_up")
        self._force(life)
        return True

    def _pause(self, name: str) -> int:
        """Pause and resume; how often that was done. runc may fail to freeze a busy machine's cgroup of version 1."""
        try:
            self.asker.switch(name, "Pause", process.PAUSED)
        except StatusError as error:
            if "unable to freeze" not in error.message:
                raise
            self.field.tally.add("pauses_refused")
            return 0
        self.asker.switch(name, "Resume", process.RUNNING)
        return 1

    def _record(self, life: Life) -> "containers.Container":
        record = containers.Container(id=life.name)
        record.runtime.name = RUNTIME
        arguments = ["sh", "-c", life.script]
        cgroup = f"/{self.field.daemon.rig.namespace}/{life.name}"
        spec = make_spec(arguments, self.field.daemon.rig.rootfs, cgroup, terminal=life.log == plans.TERMINAL)
        record.spec.CopyFrom(wkt.any_of(SPEC_URL, json.dumps(spec).encode()))
        return record

    def _create_request(self, life: Life) -> "CreateTaskRequest":
        log_format = "raw" if life.log == plans.RAW else "json"
        uri = f"log://{self.field.log_path(life.name)}?format={log_format}"
        if life.is_rotated:
            uri += f"&max-size={plans.ROTATED_BYTES}&max-files={plans.ROTATED_FILES}"
        if life.log == plans.TERMINAL:
            return tasks.CreateTaskRequest(container_id=life.name, stdout=uri, terminal=True)
        return tasks.CreateTaskRequest(container_id=life.name, stdout=uri, stderr=uri)

    def _exec(self, life: Life, number: int, act: Act) -> None:
        """Add, start, wait for its end, forget it."""
        name, asker = life.exec_name(number), self.asker
        uri = f"log://{self.field.log_path(name)}?format=raw"
        request = tasks.ExecProcessRequest(container_id=life.name, exec_id=name, stdout=uri, stderr=uri)
        raw = json.dumps(make_process(["sh", "-c", life.exec_script(number)])).encode()
        request.spec.CopyFrom(wkt.any_of(PROCESS_URL, raw))
        asker.add_exec(request)
        asker.start(life.name, name)
        answered = asker.wait(life.name, name)
        if answered not in (act.code, 255):
            self.field.fail("exec_statuses_wrong", life.name, f"wait for {name}: {answered}, not {act.code}")
        asker.delete("DeleteProcess", tasks.DeleteProcessRequest(container_id=life.name, exec_id=name))

    def _update(self, life: Life, act: Act) -> None:
        request = tasks.UpdateTaskRequest(container_id=life.name)
        resources = {"memory": {"limit": MEMORY_BYTES[act.code % 2]}}
        request.resources.CopyFrom(wkt.any_of("LinuxResources", json.dumps(resources).encode()))
        self.asker.ask(TASKS, "Update", request)

    def _look_at_pid(self, life: Life, pid: int) -> None:
        found = self.asker.task(life.name)
        is_there = found is not None and found.pid == pid and found.status in (process.RUNNING, process.PAUSED)
        if not (is_there or is_hung_up(self.field, life)):  # of one hung up, what is asked next is refused
            self.field.fail("pids_changed", life.name, f"{life.name}: started as {pid}, now {found}")

    def _end(self, life: Life) -> int:
        """Bring its end about; the value is how many lines its log had before a SIGKILL."""
        if life.end in (plans.TERM, plans.KILL):
            ends_at = time.monotonic() + BIRTH_S
            while not self.field.truth.told(life.name):  # else the signal may come before the shell has its trap
                if time.monotonic() > ends_at:
                    raise Stuck(f"{life.name} was started and does not run: {self.asker.task(life.name)}")
                time.sleep(0.02)
            time.sleep(0.05)
        self.doing = life.end
        seen = 0
        if life.end == plans.TOLD:
            self.field.truth.release(life.name)
        elif life.end == plans.TERM:
            self.asker.kill(life.name, signal.SIGTERM)
        elif life.end == plans.KILL:
            log = Log(self.field.log_path(life.name), life.name, is_json=life.log != plans.RAW)
            seen = len(log.numbers)
            self.asker.kill(life.name, signal.SIGKILL)
        return seen

    def _force(self, life: Life) -> None:
        request = shimd.ForceDeleteRequest(container_id=life.name)
        for service, method, asked in (
            (SHIMD, "ForceDelete", request),
            (CONTAINERS, "Delete", containers.DeleteContainerRequest(id=life.name)),
        ):
            try:
                self.asker.delete(method, asked, service)
            except (Stuck, StatusError) as error:
                self.field.tally.add("forced_in_vain")
                print(f"  {life.name} cannot be removed: {error}", flush=True)
