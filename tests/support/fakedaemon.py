"""A daemon and its shims in one process, for testing the command line without root: programs run as plain processes.

It keeps containers, tasks, exits and events in memory and answers as the real one does where shimctl looks. What it
does not do: namespaces, cgroups, runc, restart policies.
"""

# ruff: noqa: N802 - handlers have the names of the rpcs

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.support.fakeprocess import FakeProcess
from tests.support.threadserver import Call, ThreadServer
from ttrpc.api import cgroups1, containers, descriptor, events, process, runc, shim, shimd, task, tasks, version, wkt
from ttrpc.errors import StatusError
from ttrpc.service import Registry
from ttrpc.status import Code

STEP_S = 0.02  # how soon a handler that waits notices that its caller has gone


class FakeDaemon:
    """The daemon's services over one socket, and a shim's over one more for each task.

    ``calls`` lists every call by method name. Owns a folder, the servers and the processes; leaving it ends all.
    """

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="f")
        self.address = os.path.join(self.folder, "d.sock")
        self.calls: list[str] = []
        self.containers: dict[str, Any] = {}
        self.tasks: dict[str, FakeTask] = {}
        self.exits: list[Any] = []
        self.events: list[Any] = []
        self.fail: dict[str, StatusError] = {}  # method → the error it answers with, once
        self.changed = threading.Condition()
        registry = Registry()
        for name, handlers in (
            ("containerd.services.containers.v1.Containers", Containers(self)),
            ("containerd.services.tasks.v1.Tasks", Tasks(self)),
            ("containerd.services.version.v1.Version", Version()),
            ("shimd.v1.Shimd", Shimd(self)),
        ):
            registry.register(name, Logged(self, handlers))
        self.server = ThreadServer(self.address, registry)

    def __enter__(self) -> "FakeDaemon":
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in list(self.tasks.values()):
            each.end()
        self.server.stop()
        shutil.rmtree(self.folder)

    def lose(self, method: str, when: str) -> None:
        """Lose all connections once, at the next call of a method: threadserver.BEFORE it took effect, or AFTER."""
        self.server.losses[method] = when

    def publish(self, topic: str, event: Any, exit_record: Any = None) -> None:
        with self.changed:
            record = shimd.EventRecord(seq=len(self.events) + 1, timestamp=wkt.timestamp(time.time_ns()))
            record.namespace, record.topic = "default", topic
            record.event.CopyFrom(wkt.pack(event))
            if exit_record is not None:
                record.exit.CopyFrom(exit_record)
                self.exits.append(exit_record)
            self.events.append(record)
            self.changed.notify_all()

    def task(self, container_id: str) -> "FakeTask":
        if container_id not in self.tasks:
            raise StatusError(Code.NOT_FOUND, f"task {container_id} not found")
        return self.tasks[container_id]


class Logged:
    """Handlers that are written down, and fail when told to."""

    def __init__(self, daemon: FakeDaemon, handlers: object) -> None:
        self._daemon = daemon
        self._handlers = handlers

    def __getattr__(self, name: str) -> Any:
        handler = getattr(self._handlers, name)

        def call(call: Call) -> Any:
            self._daemon.calls.append(name)
            error = self._daemon.fail.pop(name, None)
            if error is not None:
                raise error
            return handler(call)

        return call


class FakeTask:
    """A container's processes and the socket of its shim."""

    def __init__(self, daemon: FakeDaemon, request: Any, args: list[str], env: list[str]) -> None:
        self.daemon = daemon
        self.id = request.container_id
        self.init = FakeProcess(self, "", args, env, request)
        self.execs: dict[str, FakeProcess] = {}
        registry = Registry()
        registry.register("shimd.shim.v1.Shim", Shim(self))
        registry.register("containerd.task.v2.Task", ShimTask(self))
        self.server = ThreadServer(os.path.join(daemon.folder, f"s-{len(daemon.calls)}"), registry)
        self.server.start()

    def process(self, exec_id: str) -> FakeProcess:
        if not exec_id:
            return self.init
        if exec_id not in self.execs:
            raise StatusError(Code.NOT_FOUND, f"process does not exist {exec_id}")
        return self.execs[exec_id]

    def exited(self, record: Any) -> None:
        told = events.TaskExit(container_id=self.id, id=record.exec_id or self.id, pid=record.pid)
        told.exit_status = record.code if record.HasField("code") else 128 + record.signal
        self.daemon.publish("/tasks/exit", told, record)

    def end(self) -> None:
        for each in [*self.execs.values(), self.init]:
            each.end()
        self.server.stop()


class Version:
    """containerd.services.version.v1."""

    def Version(self, call: Call) -> Any:
        return version.VersionResponse(version="9.9.9", revision="fake")


class Containers:
    """containerd.services.containers.v1."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon

    def _get(self, name: str) -> Any:
        if name not in self.daemon.containers:
            raise StatusError(Code.NOT_FOUND, f"container {name!r} not found")
        return self.daemon.containers[name]

    def Create(self, call: Call) -> Any:
        made = call.request.container
        if made.id in self.daemon.containers:
            raise StatusError(Code.ALREADY_EXISTS, f"container {made.id!r} already exists")
        made.created_at.CopyFrom(wkt.timestamp(time.time_ns()))
        self.daemon.containers[made.id] = made
        self.daemon.publish("/containers/create", events.ContainerCreate(id=made.id))
        return containers.CreateContainerResponse(container=made)

    def Get(self, call: Call) -> Any:
        return containers.GetContainerResponse(container=self._get(call.request.id))

    def List(self, call: Call) -> Any:
        return containers.ListContainersResponse(containers=self.daemon.containers.values())

    def ListStream(self, call: Call) -> None:
        for container in self.daemon.containers.values():
            call.send(containers.ListContainerMessage(container=container))

    def Update(self, call: Call) -> Any:
        new = call.request.container
        found = self._get(new.id)
        for path in call.request.update_mask.paths:
            if path == "spec":
                found.spec.CopyFrom(new.spec)
            else:
                name = path.removeprefix("labels.")
                found.labels[name] = new.labels[name]
        return containers.UpdateContainerResponse(container=found)

    def Delete(self, call: Call) -> Any:
        self._get(call.request.id)
        if call.request.id in self.daemon.tasks:
            raise StatusError(Code.FAILED_PRECONDITION, "it has a task")
        del self.daemon.containers[call.request.id]


class Tasks:
    """containerd.services.tasks.v1."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon

    def Create(self, call: Call) -> Any:
        request = call.request
        if request.container_id in self.daemon.tasks:
            raise StatusError(Code.ALREADY_EXISTS, f"task {request.container_id}: already exists")
        spec = json.loads(self.daemon.containers[request.container_id].spec.value)["process"]
        made = FakeTask(self.daemon, request, spec["args"], spec["env"])
        self.daemon.tasks[request.container_id] = made
        return tasks.CreateTaskResponse(container_id=request.container_id, pid=1)

    def Start(self, call: Call) -> Any:
        found = self.daemon.task(call.request.container_id).process(call.request.exec_id)
        return tasks.StartResponse(pid=found.start())

    def Exec(self, call: Call) -> Any:
        request = call.request
        owner = self.daemon.task(request.container_id)
        if request.exec_id in owner.execs:
            raise StatusError(Code.ALREADY_EXISTS, f"id {request.exec_id}")
        spec = json.loads(request.spec.value)
        owner.execs[request.exec_id] = FakeProcess(owner, request.exec_id, spec["args"], spec["env"], request)

    def Get(self, call: Call) -> Any:
        found = self.daemon.task(call.request.container_id).process(call.request.exec_id)
        return tasks.GetResponse(process=found.as_message())

    def List(self, call: Call) -> Any:
        return tasks.ListTasksResponse(tasks=[each.init.as_message() for each in self.daemon.tasks.values()])

    def Kill(self, call: Call) -> Any:
        found = self.daemon.task(call.request.container_id).process(call.request.exec_id)
        found.kill(call.request.signal)

    def Wait(self, call: Call) -> Any:
        found = self.daemon.task(call.request.container_id).process(call.request.exec_id)
        while not found.over.wait(STEP_S):
            if not call.is_open:
                return tasks.WaitResponse()
        return tasks.WaitResponse(exit_status=found.exit_status)

    def Delete(self, call: Call) -> Any:
        found = self.daemon.task(call.request.container_id)
        if found.init.status not in (process.STOPPED, process.CREATED):
            raise StatusError(Code.FAILED_PRECONDITION, "cannot delete a running process")
        del self.daemon.tasks[call.request.container_id]
        found.end()
        return tasks.DeleteResponse(id=found.id, exit_status=found.init.exit_status)

    def DeleteProcess(self, call: Call) -> Any:
        owner = self.daemon.task(call.request.container_id)
        owner.process(call.request.exec_id)
        del owner.execs[call.request.exec_id]
        return tasks.DeleteResponse(id=call.request.exec_id)

    def Pause(self, call: Call) -> Any:
        self.daemon.task(call.request.container_id).init.pause()

    def Resume(self, call: Call) -> Any:
        self.daemon.task(call.request.container_id).init.resume()

    def Update(self, call: Call) -> Any:
        self.daemon.task(call.request.container_id).init.resources = call.request.resources.value

    def ListPids(self, call: Call) -> Any:
        owner = self.daemon.task(call.request.container_id)
        found = [process.ProcessInfo(pid=owner.init.pid)]
        for exec_id, each in owner.execs.items():
            found.append(process.ProcessInfo(pid=each.pid, info=wkt.pack(runc.ProcessDetails(exec_id=exec_id))))
        return tasks.ListPidsResponse(processes=found)

    def Metrics(self, call: Call) -> Any:
        found = []
        for name in self.daemon.tasks:
            data = cgroups1.Metrics(pids=cgroups1.PidsStat(current=1))
            data.memory.usage.usage = 3 << 20
            data.memory.usage.limit = 64 << 20
            data.cpu.usage.total = time.monotonic_ns() // 2  # half a CPU
            found.append(descriptor.Metric(id=name, timestamp=wkt.timestamp(time.monotonic_ns()), data=wkt.pack(data)))
        wanted = {text.partition('"')[2].rstrip('"') for text in call.request.filters}
        return tasks.MetricsResponse(metrics=[each for each in found if not wanted or each.id in wanted])


class Shimd:
    """shimd.v1."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon

    def Info(self, call: Call) -> Any:
        newest = len(self.daemon.events)
        return shimd.InfoResponse(version="9.9.9", pid=1, root_dir=self.daemon.folder, newest_event_seq=newest)

    def Shims(self, call: Call) -> Any:
        wanted = call.request.container_id
        found = [each for name, each in self.daemon.tasks.items() if wanted in ("", name)]
        records = [
            shimd.ShimRecord(
                namespace="default", container_id=each.id, address=f"unix://{each.server.path}", pid=os.getpid(),
                health=shimd.HEALTH_SERVING,
            )
            for each in found
        ]  # fmt: skip
        return shimd.ShimsResponse(shims=records)

    def ForceDelete(self, call: Call) -> Any:
        self.daemon.task(call.request.container_id).end()
        del self.daemon.tasks[call.request.container_id]

    def Exits(self, call: Call) -> Any:
        request = call.request
        found = [
            each
            for each in self.daemon.exits
            if request.container_id in ("", each.container_id)
            and (not request.HasField("exec_id") or request.exec_id == each.exec_id)
        ]
        return shimd.ExitsResponse(exits=found[-request.limit :] if request.limit else found)

    def Events(self, call: Call) -> Any:
        for record in self._events(call):
            if not call.send(record):
                return

    def _events(self, call: Call) -> Iterator[Any]:
        at = call.request.after_seq
        while call.is_open:
            with self.daemon.changed:
                new = self.daemon.events[at:]
                if not new and call.request.follow:
                    self.daemon.changed.wait(STEP_S)
                    continue
            yield from new
            at += len(new)
            if not call.request.follow:
                return


class Shim:
    """shimd.shim.v1 of one task."""

    def __init__(self, owner: FakeTask) -> None:
        self.owner = owner

    def Attach(self, call: Call) -> None:
        first = call.messages.get()
        self.owner.process(first.open.exec_id).attach(call, first.open)

    def Logs(self, call: Call) -> None:
        for record in self.owner.init.log:
            call.send(record)

    def Info(self, call: Call) -> Any:
        return shim.InfoResponse(version="9.9.9", container_id=self.owner.id)

    def Exits(self, call: Call) -> Any:
        mine = [each for each in self.owner.daemon.exits if each.container_id == self.owner.id]
        return shim.ExitsResponse(exits=mine)


class ShimTask:
    """containerd.task.v2 of one task, as far as shimctl asks shims themselves."""

    def __init__(self, owner: FakeTask) -> None:
        self.owner = owner

    def Kill(self, call: Call) -> Any:
        self.owner.process(call.request.exec_id).kill(call.request.signal)

    def State(self, call: Call) -> Any:
        found = self.owner.process(call.request.exec_id)
        return task.StateResponse(id=self.owner.id, pid=found.pid, status=found.status)
