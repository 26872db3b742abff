"""containerd's shim binary protocol: find the program, run its `start` and `delete`. As containerd 1.6 to 2.2 do it.

<shim> -namespace NS -address GRPC -publish-binary BIN -id ID [-debug] start     stdin: Any of the options; cwd: bundle
<shim> -namespace NS -address GRPC -publish-binary BIN -id ID -bundle DIR delete
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio
from google.protobuf.message import DecodeError

from daemon.config import DEFAULT_RUNTIME, Config, Runtime
from daemon.errors import invalid_argument, not_found, unavailable, unimplemented, unknown
from daemon.notify import PRIVATE_VARIABLES
from daemon.procfs import Identity
from ttrpc.api import runc, task, wkt
from ttrpc.errors import StatusError

if TYPE_CHECKING:
    from ttrpc.api.task import DeleteResponse
    from ttrpc.api.wkt import Any as ProtoAny

MAX_OUTPUT_BYTES = 1 << 20  # more is read, so that nobody blocks, and dropped
REAP_TIMEOUT_S = 5.0  # after SIGKILL
MAX_OUTPUT_CHARS = 8192  # of a failed shim's words in an error; the rest is in its log
RUNC_OPTIONS = "containerd.runc.v1.Options"
OWN_PROGRAM = "containerd-shim-shimd-v2"
NEWEST_TASK_API = 3
# A group of its own, in our session, so that its end takes its helpers along. trio's annotations lack the argument.
_OWN_GROUP: dict[str, Any] = {"process_group": 0}


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A shim's program and what every call of it is told."""

    path: str
    grpc_address: str
    publish_binary: str
    socket_dir: str
    debug: bool = False
    keeper: bool = True  # whether one may be asked to fork the shim
    ttrpc_address: str = ""  # where a shim that is not ours sends its events; empty for ours, which are followed
    spared: frozenset[Identity] = frozenset()  # shims of other tasks: a grouping shim may be one of them

    def argv(self, namespace: str, container_id: str, action: str, bundle: str | None = None) -> list[str]:
        return [
            self.path,
            *("-namespace", namespace),
            *("-address", self.grpc_address),
            *("-publish-binary", self.publish_binary),
            *("-id", container_id),
            *(("-bundle", bundle) if bundle else ()),
            *(("-debug",) if self.debug else ()),
            action,
        ]

    def environ(self, namespace: str) -> dict[str, str]:
        """Our environment without what is meant for us alone. A shim that is not ours gets what containerd gives it."""
        private = (*PRIVATE_VARIABLES, "TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE")
        kept = {name: value for name, value in os.environ.items() if name not in private}
        if not self.ttrpc_address:
            return {**kept, "SHIMD_SOCKET_DIR": self.socket_dir, **({} if self.keeper else {"SHIMD_KEEPER": "off"})}
        kept |= {"TTRPC_ADDRESS": self.ttrpc_address, "GRPC_ADDRESS": self.grpc_address, "NAMESPACE": namespace}
        return {**kept, "GOMAXPROCS": "2", "MAX_SHIM_VERSION": "2"}


def is_foreign(runtime: str, path: str) -> bool:
    """Whether a runtime's shim is not one of ours: it is started, told of events and logged as containerd does it."""
    return runtime != DEFAULT_RUNTIME and os.path.basename(path) != OWN_PROGRAM


def resolve(runtime: str, runtime_path: str, runtimes: Mapping[str, Runtime]) -> str:
    """The program of a runtime: what the configuration says, else containerd's rule.

    ``a.b.name.v2`` is ``containerd-shim-name-v2``, in PATH or beside our own program; an absolute path stays as it is.
    Raises: InvalidArgument for a name that cannot be one, NotFound for a program that is not there.
    """
    configured = runtimes.get(runtime)
    named = runtime_path or (configured.shim if configured is not None else "")
    if named or os.path.isabs(runtime):
        found = shutil.which(named or runtime)
        if found is None:
            raise not_found(f"runtime {runtime}: {named or runtime} is not an executable file")
        return os.path.abspath(found)
    parts = runtime.split(".")
    if len(parts) < 2 or "/" in runtime or not all(parts[-2:]):
        raise invalid_argument(f"runtime {runtime!r} must be an absolute path or end like in io.containerd.shimd.v2")
    name = f"containerd-shim-{parts[-2]}-{parts[-1]}"
    beside = [os.path.dirname(os.path.abspath(program)) for program in (sys.argv[0], sys.executable)]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(beside))
    if found is None:
        raise not_found(f"runtime {runtime}: no program {name} in PATH or in {' or '.join(dict.fromkeys(beside))}")
    return os.path.abspath(found)


def options_for(config: Config, runtime: str, given: "ProtoAny | None") -> "ProtoAny":
    """The runtime's options as the shim gets them: the client's, completed by the configuration.

    Options of a type that is not runc's are passed on as they are.
    """
    if given is not None and given.type_url and given.type_url.rpartition("/")[2] != RUNC_OPTIONS:
        return given
    options = runc.Options()
    if given is not None and given.type_url:
        try:
            options.MergeFromString(given.value)
        except DecodeError as error:
            raise invalid_argument(f"runtime options are no {RUNC_OPTIONS}: {error}") from None
    configured = config.runtimes.get(runtime, Runtime())
    options.root = options.root or config.runc_root
    options.binary_name = options.binary_name or configured.runc
    options.systemd_cgroup = options.systemd_cgroup or configured.systemd_cgroup
    return wkt.pack(options)


async def start(
    program: Program, namespace: str, container_id: str, bundle: str, options: "ProtoAny", timeout_s: float
) -> str:
    """Run `start`; returns the path of the socket that the shim told.

    Blocks: until it has exited and closed its output, at most ``timeout_s``; then its process group is killed.
    Raises: Unknown with the shim's own words; Unavailable when it took too long.
    """
    argv = program.argv(namespace, container_id, "start")
    environ = program.environ(namespace)
    status, output = await _run(environ, argv, bundle, options.SerializeToString(), timeout_s, join_stderr=True)
    text = output.decode("utf-8", "replace").strip()
    if status != 0:
        raise unknown(f"shim start failed: {text[-MAX_OUTPUT_CHARS:] or 'it said nothing'}: exit status {status}")
    return parse_address(text)


def parse_address(text: str) -> str:
    """What `start` printed: an address, or since containerd 1.7 JSON with it. Returns the socket's path.

    Raises: Unknown for anything else; Unimplemented for a protocol or version not spoken here.
    """
    address = text
    if text.startswith("{"):
        try:
            told = json.loads(text)
            address, version, protocol = told["address"], told["version"], told.get("protocol", "ttrpc")
        except (ValueError, KeyError, TypeError):
            raise unknown(f"shim start printed no socket address but {text[:200]!r}") from None
        if protocol != "ttrpc" or not isinstance(version, int) or version > NEWEST_TASK_API:
            raise unimplemented(
                f"the shim speaks {protocol} with task API {version}; here it is ttrpc with at most {NEWEST_TASK_API}"
            )
    path = str(address).removeprefix("unix://")
    if not path.startswith("/") or "\n" in path:
        raise unknown(f"shim start printed no socket address but {text[:200]!r}")
    return path


async def ensure_keeper(program: Program, timeout_s: float) -> str:
    """Have the keeper of the program's installation serve; returns the path of its socket.

    It is in a session of its own and nobody's child; it may still be importing. Blocks: for the program, some 30 ms.
    Raises: Unknown with the program's words; Unavailable when it took too long.
    """
    argv = [program.path, "ensure-keeper"]
    status, output = await _run(program.environ(""), argv, "/", None, timeout_s, join_stderr=True)
    text = output.decode("utf-8", "replace").strip()
    if status != 0 or not text.startswith("/"):
        raise unknown(f"no keeper could be started: {text[-MAX_OUTPUT_CHARS:] or 'it said nothing'}")
    return text


async def delete(
    program: Program, namespace: str, container_id: str, bundle: str, timeout_s: float
) -> "DeleteResponse | None":
    """Run `delete`: it ends the container, unmounts and clears what a dead shim left. None when that failed.

    Blocks: at most ``timeout_s``.
    """
    argv = program.argv(namespace, container_id, "delete", bundle)
    try:
        status, output = await _run(program.environ(namespace), argv, bundle, None, timeout_s, join_stderr=False)
    except StatusError:
        return None
    if status != 0:
        return None
    try:
        return task.DeleteResponse.FromString(output)
    except DecodeError:
        return None


async def _run(
    environ: dict[str, str], argv: list[str], bundle: str, stdin: bytes | None, timeout_s: float, *, join_stderr: bool
) -> tuple[int, bytes]:
    """Run to the end of its output and its own; what takes too long is killed with all it started in its group."""
    try:
        process = await trio.lowlevel.open_process(
            argv,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if join_stderr else subprocess.DEVNULL,
            cwd=bundle,
            env=environ,
            **_OWN_GROUP,
        )
    except OSError as error:
        raise unavailable(f"{argv[0]} could not be run: {error.strerror}") from None
    is_over = False
    try:
        with trio.move_on_after(timeout_s):
            output = await _converse(process, stdin or b"")
            # Reaped only now: until here the zombie keeps its pid, and with it the group's id, from being used again.
            status = await process.wait()
            is_over = True
            return status, output
        raise unavailable(f"{argv[0]} {argv[-1]} was not done after {timeout_s:g} s; it was killed")
    finally:
        if not is_over:
            await _kill_group(process)


async def _converse(process: trio.Process, stdin: bytes) -> bytes:
    """Say what there is to say, which a pipe holds at once, and read everything that is said."""
    if process.stdin is not None:
        async with process.stdin:
            try:
                await process.stdin.send_all(stdin)
            except trio.BrokenResourceError:
                pass  # it did not want to hear it; what it says tells more
    parts: list[bytes] = []
    assert process.stdout is not None
    async with process.stdout:
        async for part in process.stdout:
            if sum(map(len, parts)) < MAX_OUTPUT_BYTES:
                parts.append(bytes(part))
    return b"".join(parts)


async def _kill_group(process: trio.Process) -> None:
    """The program and what it started that did not make itself a group of its own; then reap it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    with trio.CancelScope(shield=True, deadline=trio.current_time() + REAP_TIMEOUT_S):
        await process.wait()
