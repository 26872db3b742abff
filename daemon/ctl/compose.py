"""A command line → the container record and the task request that mean it, as `ctr` composes them. Talks to nobody."""

import json
import os

from daemon import hostfacts, rootfs, spec
from daemon.ctl import labels
from daemon.ctl.errors import CtlError, UsageError
from daemon.ctl.flags import NOT_WITH_BUNDLE, check_restart, key_values, parse_log_options
from ttrpc.api import containers, runc, tasks, wkt

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
DEFAULT_RUNTIME = "io.containerd.shimd.v2"

# Two words and two digits: easy to say, and 57,600 of them; chosen to be told apart at a glance.
_FIRST = (  # noqa: SIM905 - words read best as words
    "amber bold brisk calm clear cosy crisp deft eager early fair fleet glad grand green keen kind light lucid merry "
    "mild neat noble plain proud quick quiet ready sober solid spry swift tidy true warm wise"
).split()
_SECOND = (  # noqa: SIM905
    "badger beaver bison crane curlew dingo falcon ferret finch gecko heron ibex jackal kestrel lemur lynx marten mole "
    "moose newt osprey otter owl panda plover puffin raven robin seal shrew stoat stork tapir tern walrus wren"
).split()


def made_up_id() -> str:
    """A readable id for a container nobody named."""
    drawn = int.from_bytes(os.urandom(6), "big")
    first, drawn = _FIRST[drawn % len(_FIRST)], drawn // len(_FIRST)
    second, drawn = _SECOND[drawn % len(_SECOND)], drawn // len(_SECOND)
    return f"{first}-{second}-{drawn % 100:02d}"


def made_up_exec_id() -> str:
    """An id for an exec that nobody else can have chosen, so that finding it there means it is ours."""
    return "exec-" + os.urandom(6).hex()


def build_spec(args: "argparse.Namespace", container_id: str, command: "Sequence[str]") -> "dict[str, Any]":
    """The OCI runtime spec of a command line.

    Raises: UsageError, SpecError; CtlError for a bundle or file that cannot be used.
    """
    if args.bundle and args.rootfs:
        raise UsageError("--bundle and --rootfs do not go together: a bundle names its own root filesystem")
    if args.bundle:
        return _from_bundle(args, container_id, command)
    if not args.rootfs:
        raise UsageError("say what to run it on: --rootfs DIR or --bundle DIR")
    return _from_rootfs(args, container_id, command)


def _from_rootfs(args: "argparse.Namespace", container_id: str, command: "Sequence[str]") -> "dict[str, Any]":
    root = os.path.abspath(args.rootfs)
    if not os.path.isdir(root):
        raise CtlError(f"root filesystem {args.rootfs}: no such directory")
    quota_us, period_us = spec.parse_cpus(args.cpus) if args.cpus else (None, None)
    filtered, no_new_privileges = _security(args.security_opt)
    options = spec.SpecOptions(
        namespace=args.namespace,
        container_id=container_id,
        args=command,
        rootfs=root,
        env=_environment(args),
        cwd=args.cwd or "/",
        user=spec.parse_user(args.user, *rootfs.passwd_and_group(root)) if args.user else None,
        terminal=args.tty,
        hostname=args.hostname,
        mounts=[spec.parse_mount(text) for text in [*args.mount, *map(_absolute_volume, args.volume)]],
        read_only=args.read_only,
        memory_bytes=spec.parse_memory_limit(args.memory) if args.memory else None,
        memory_swap_bytes=spec.parse_memory_swap(args.memory_swap) if args.memory_swap else None,
        cpu_quota_us=quota_us,
        cpu_period_us=period_us,
        cpu_shares=args.cpu_shares,
        cpuset_cpus=args.cpuset_cpus or "",
        pids_limit=args.pids_limit if (args.pids_limit or 0) > 0 else None,
        cap_add=args.cap_add,
        cap_drop=args.cap_drop,
        host_capabilities=hostfacts.capabilities(),
        privileged=args.privileged,
        devices=hostfacts.devices() if args.privileged else (),
        no_new_privileges=no_new_privileges,
        seccomp=filtered,
        net=args.net or "none",
        host_network_files=hostfacts.host_network_files(),
        rlimits=[spec.parse_rlimit(text) for text in args.ulimit],
        oom_score_adj=_oom_score_adj(args.oom_score_adj),
        stop_signal=args.stop_signal,
        annotations=key_values(args.annotation, "annotation"),
    )
    return spec.build(options)


def _from_bundle(args: "argparse.Namespace", container_id: str, command: "Sequence[str]") -> "dict[str, Any]":
    refused = [flag for name, flag in NOT_WITH_BUNDLE.items() if getattr(args, name)]
    if refused:
        raise UsageError(f"{refused[0]} does not go with --bundle", hint=f"write it into {args.bundle}/config.json")
    path = os.path.join(os.path.abspath(args.bundle), "config.json")
    made: dict[str, Any] = _read_json(path, "a bundle holds its OCI spec in config.json; `runc spec` writes one")
    problems = spec.validate(made)
    if problems:
        raise CtlError(f"{path} is not a usable OCI spec:\n" + "\n".join(problems[:10]))
    process = made["process"]
    if command:
        process["args"] = list(command)
    process["env"] = spec.merge_env(process.get("env") or [], _environment(args))
    process["terminal"] = bool(args.tty or process.get("terminal"))
    process["cwd"] = args.cwd or process["cwd"]
    if args.hostname:
        made["hostname"] = args.hostname
    if args.annotation:
        made["annotations"] = {**(made.get("annotations") or {}), **key_values(args.annotation, "annotation")}
    made["root"]["path"] = _beside(path, made["root"]["path"])
    for mount in made.get("mounts") or []:
        # OCI runtime-spec config.md: a relative source of a bind mount is relative to the bundle, which ours is not.
        if mount.get("source") and {"bind", "rbind"} & {mount.get("type"), *(mount.get("options") or ())}:
            mount["source"] = _beside(path, mount["source"])
    linux = made.setdefault("linux", {})
    linux["cgroupsPath"] = linux.get("cgroupsPath") or f"/{args.namespace}/{container_id}"
    return made


def _beside(config: str, path: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(config), path))


def _read_json(path: str, hint: str = "") -> "Any":
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise CtlError(f"{path}: no such file", hint=hint) from None
    except ValueError as error:
        raise CtlError(f"{path} is not JSON: {error}") from None


def _environment(args: "argparse.Namespace") -> list[str]:
    """The files' entries, then the options', as a later one wins."""
    entries: list[str] = []
    for path in args.env_file:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            try:
                entries += spec.parse_env_file(file.read(), os.environ)
            except spec.SpecError as error:
                raise spec.SpecError(f"{path}: {error}") from None
    return entries + spec.parse_env(args.env, os.environ)


def _absolute_volume(text: str) -> str:
    """A volume whose host side may be relative to where we are, as on docker's command line."""
    return os.path.abspath(text.partition(":")[0]) + ":" + text.partition(":")[2] if text[:1] == "." else text


def _oom_score_adj(value: int | None) -> int:
    if value is None:
        return 0
    if not -1000 <= value <= 1000:
        raise UsageError(f"--oom-score-adj {value}: must lie between -1000 and 1000")
    return value


def _security(items: "Sequence[str]") -> "tuple[str | dict[str, Any], bool | None]":
    """(seccomp as `spec.build` takes it, no_new_privileges or None) of the --security-opt values."""
    filtered: str | dict[str, Any] = "default"
    no_new_privileges = None
    for name, value in key_values(items, "security option").items():
        if name == "seccomp" and value in ("unconfined", "default"):
            filtered = value
        elif name == "seccomp" and value:
            filtered = _read_json(value, "an OCI seccomp object is expected there")
        elif name == "no-new-privileges" and value in ("", "true", "false"):
            no_new_privileges = value != "false"
        else:
            text = f"{name}={value}" if value else name
            raise UsageError(
                f"security option {text!r} is not known: seccomp=unconfined, seccomp=FILE or no-new-privileges[=false]"
            )
    return filtered, no_new_privileges


def build_stdio(args: "argparse.Namespace", container_id: str, root_dir: str, *, terminal: bool) -> labels.Stdio:
    """Where the streams of a command line's container go. Source: the stdio URIs of SHIM.md."""
    stdin = "attach:" if args.interactive else ""
    options = parse_log_options(args.log_opt)
    if is_foreign(runtime_of(args.runtime)):
        return _foreign_stdio(args, container_id, root_dir, terminal=terminal)
    if args.log_driver == "none":
        if options:
            raise UsageError("--log-opt has nothing to act on with --log-driver none")
        return labels.Stdio(stdin, "attach:", "" if terminal else "attach:", terminal=terminal)
    form = "raw" if args.log_driver == "raw" else "json"
    query = "&".join([f"format={form}", *(f"{name}={value}" for name, value in options.items())])
    uri = f"log://{_log_path(args, container_id, root_dir)}?{query}"
    return labels.Stdio(stdin, uri, "" if terminal else uri, terminal=terminal)


def _log_path(args: "argparse.Namespace", container_id: str, root_dir: str) -> str:
    path = f"{root_dir}/logs/{args.namespace}/{container_id}/container.log"
    if not path.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum():
        from urllib.parse import quote

        path = quote(path)
    return path


def _foreign_stdio(args: "argparse.Namespace", container_id: str, root_dir: str, *, terminal: bool) -> labels.Stdio:
    """For a shim that is not ours: a plain file it appends to while nobody stays with the container.

    Raises: UsageError for what only our shim can do.
    """
    is_detached = getattr(args, "detach", True)
    if args.log_opt:
        raise UsageError("--log-opt needs shimd's own runtime: another's shim does not rotate logs")
    if is_detached and (args.interactive or terminal):
        raise UsageError(
            "-i and -t in the background need shimd's own runtime: with another somebody must hold the streams",
            hint="leave out -d, or --runtime",
        )
    if not is_detached and args.restart != "no":
        raise UsageError("--restart needs -d with a runtime that is not shimd's: its streams end with us")
    stdin = "attach:" if args.interactive else ""
    uri = f"file://{_log_path(args, container_id, root_dir)}" if args.log_driver != "none" and not terminal else ""
    out = uri or "attach:"
    return labels.Stdio(stdin, out, "" if terminal else out, terminal=terminal)


def build_labels(args: "argparse.Namespace", stdio: labels.Stdio, request: str) -> dict[str, str]:
    """The record's labels: the user's, and what later commands and the daemon's restart policy read."""
    policy = check_restart(args.restart)
    if policy != "no" and getattr(args, "remove", False):
        raise UsageError("--restart and --rm do not go together: one keeps the container, the other removes it")
    made = {labels.REQUEST: request, labels.STDIO: stdio.as_label()}
    if args.stop_signal:
        spec.parse_signal(args.stop_signal)
        made[labels.STOP_SIGNAL] = args.stop_signal
    if policy != "no":
        made[labels.RESTART_POLICY] = policy
        made[labels.RESTART_STATUS] = "running"
        if stdio.log_path:
            made[labels.RESTART_LOG_URI] = stdio.stdout
    if getattr(args, "remove", False):
        # Who stays with it removes it: the daemon might while our output is still on its way.
        made[labels.AUTO_REMOVE] = "true" if args.detach else labels.BY_CLIENT
    made.update(key_values(args.label, "label"))
    return made


def runtime_of(text: str | None) -> "containers.Container.Runtime":
    """--runtime as a record's runtime: a containerd runtime by name, or ours with another runc-compatible program."""
    if not text:
        return containers.Container.Runtime(name=DEFAULT_RUNTIME)
    if text.startswith("io.") and "/" not in text:
        return containers.Container.Runtime(name=text)
    program = os.path.abspath(text) if "/" in text else text
    return containers.Container.Runtime(name=DEFAULT_RUNTIME, options=wkt.pack(runc.Options(binary_name=program)))


def is_foreign(runtime: "containers.Container.Runtime") -> bool:
    """Whether a runtime's shim may be one that is not ours: then only what every shim of containerd's knows is used."""
    return bool(runtime.name != DEFAULT_RUNTIME)


def container_record(
    args: "argparse.Namespace", container_id: str, made: "dict[str, Any]", stdio: labels.Stdio, request: str
) -> "containers.Container":
    """The record to send to Containers.Create."""
    return containers.Container(
        id=container_id,
        labels=build_labels(args, stdio, request),
        runtime=runtime_of(args.runtime),
        spec=wkt.any_of(SPEC_TYPE, json.dumps(made, separators=(",", ":")).encode()),
    )


def task_request(container_id: str, stdio: labels.Stdio) -> "tasks.CreateTaskRequest":
    """The request to send to Tasks.Create."""
    return tasks.CreateTaskRequest(
        container_id=container_id, stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr, terminal=stdio.terminal
    )


def spec_of(container: "containers.Container") -> "dict[str, Any]":
    """The OCI spec a record carries; empty when it has none or not as JSON."""
    try:
        found = json.loads(container.spec.value)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
