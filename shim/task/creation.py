"""Creating the container: mounts, stdio, `runc create`; and how a Create that failed is undone."""

import os

from shim import faults
from shim.bundle import remove
from shim.errors import already_exists, unknown
from shim.task import mounts, runc
from shim.task.ending import on_exit
from shim.task.pinning import pin, unpin
from shim.task.saving import save, save_and_tell
from ttrpc.api import events
from ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from shim.bundle import Bundle
    from shim.core.steps import Handler
    from shim.streams.stdio import Stdio
    from shim.task.container import Container
    from shim.task.process import Process
    from ttrpc.api.events import TaskCreate
    from ttrpc.api.runc import Options
    from ttrpc.api.task import CreateTaskRequest


def create(container: "Container", request: "CreateTaskRequest") -> "Handler":
    """Create init, paused before the user's program. The value is its pid.

    Blocks: until runc has written the pid file (about 40 ms).
    Order: what fails is undone before the failure is told; an exit seen meanwhile is told after `create`.
    Raises: UNKNOWN with runc's own words, InvalidArgument, FailedPrecondition without a runtime.
    """
    bundle = container.parts.bundle
    planned = mounts.plan(request.rootfs, bundle.rootfs)
    check_unused(container)
    has_run = False
    faults.point("create.begun")
    try:
        bundle.make_directories()
        _write_options(container)
        container.reserve_exit("")
        save(container)
        faults.point("create.saved")
        if planned:
            os.makedirs(bundle.rootfs, mode=0o711, exist_ok=True)
            mounts.mount_all(planned, bundle.rootfs)
            faults.point("create.mounted")
            container.mounted = True
            save(container)
        stdio = container.open_stdio(container.init)
        yield from stdio.prepare()
        faults.point("create.streams_open")
        has_run = True
        yield from bring_up(container, container.init, stdio, request.rootfs)
    except Exception as error:
        yield from undo(container, has_run)
        if isinstance(error, OSError):
            raise unknown(f"cannot create the container: {error}") from None
        raise
    return container.init.pid


def check_unused(container: "Container") -> None:
    """Make sure that undoing a failure cannot hit a container which somebody else has created, and may be running.

    Raises: AlreadyExists when the runtime knows the id already.
    """
    path = os.path.join(container.runc.root, container.id)
    if os.path.lexists(path):
        raise already_exists(f"the runtime has a container {container.id} already ({path}): delete that first")


def bring_up(
    container: "Container",
    init: "Process",
    stdio: "Stdio",
    rootfs: "Sequence[Any]",
    born: "Callable[[], None]" = lambda: None,
) -> "Handler":
    """`runc create`: init is there, ours, pinned, and told. ``born`` is called before anybody is told.

    Raises: UNKNOWN with runc's words; INTERNAL when it left no process.
    """
    parts, pid_file = container.parts, container.parts.bundle.file("init.pid")
    parts.reaper.hold()
    try:
        arguments = create_arguments(container.options, parts.bundle.path, pid_file, stdio.console_socket)
        yield from container.runc.call(
            parts.reaper, "create", *arguments, container.id, deadline_s=runc.CREATE_S, stdio=stdio.child_ends()
        )
        faults.point("create.run")
        ended = yield from container.adopt(init, pid_file)
        faults.point("create.adopted")
        yield from pin(container, init)
        faults.point("create.pinned")
        born()
        container.watch_cgroup()
        init.lifecycle.record("created")
        save_and_tell(container, "/tasks/create", created_event(container, rootfs))
        ended.subscribe(lambda status: on_exit(container, init, status))
    finally:
        parts.reaper.release()


def created_event(container: "Container", rootfs: "Sequence[Any]") -> "TaskCreate":
    """What subscribers are told of a container that was created."""
    io, created = container.init.request, events.TaskCreate(container_id=container.id, pid=container.init.pid)
    created.bundle = container.parts.bundle.path
    created.rootfs.extend(rootfs)
    created.io.stdin, created.io.stdout, created.io.stderr = io.stdin, io.stdout, io.stderr
    created.io.terminal = io.terminal
    return created


def undo(container: "Container", has_run: bool) -> "Handler":
    """Leave nothing of a Create that failed. Its own failures are logged: the first cause is what is told."""
    parts = container.parts
    if has_run:
        try:
            yield from container.runc.call(
                parts.reaper, "delete", "delete", "--force", container.id, deadline_s=runc.DELETE_S
            )
        except StatusError as error:
            if not runc.is_gone(error):
                parts.log.warning(f"undoing a failed create: {error}")
    unpin(container, container.init)  # while its pidfd is open
    container.init.close(parts)
    container.forget_cgroup()
    container.unmount()
    parts.exits.forget("")
    for name in ("init.pid", "state.json"):
        remove(parts.bundle.file(name))
    container.init.lifecycle.record("create_failed")


def recorded_pid(bundle: "Bundle", name: str = "init.pid") -> int:
    """The pid runc wrote into a pid file; 0 when it wrote none."""
    try:
        return bundle.read_pid(bundle.file(name))
    except (OSError, ValueError):
        return 0


def _write_options(container: "Container") -> None:
    """options.json and runtime, as containerd's shim leaves them for `delete`."""
    options, bundle = container.options, container.parts.bundle
    names = [field.name for field in options.DESCRIPTOR.fields]
    bundle.write_json("options.json", {name: getattr(options, name) for name in names if getattr(options, name)})
    with open(bundle.file("runtime"), "w", encoding="utf-8") as file:
        file.write(options.binary_name)


def create_arguments(options: "Options", bundle: str, pid_file: str, console_socket: "str | None") -> list[str]:
    """The arguments of `runc create`, all but the id. Pure."""
    arguments = ["create", "--bundle", bundle, "--pid-file", pid_file]
    if console_socket:
        arguments += ["--console-socket", console_socket]
    if options.no_pivot_root:
        arguments.append("--no-pivot")
    if options.no_new_keyring:
        arguments.append("--no-new-keyring")
    return arguments


def shares_pid_namespace(spec: "dict[str, Any]") -> bool:
    """Whether init's death leaves other processes behind, having no PID namespace of its own. Pure."""
    linux = spec.get("linux")
    namespaces = linux.get("namespaces") if isinstance(linux, dict) else None
    for namespace in namespaces if isinstance(namespaces, list) else ():
        if isinstance(namespace, dict) and namespace.get("type") == "pid":
            return bool(namespace.get("path"))
    return True
