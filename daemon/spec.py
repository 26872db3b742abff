"""Options people give → an OCI runtime spec (1.0.2). Pure: no I/O, standard library only, quick to import.

What must be looked up on the machine (names in /etc/passwd, host capabilities and devices) is looked up by the caller,
see `daemon.rootfs` and `daemon.hostfacts`, and passed in. Everything a caller needs is importable from here.
"""

import os

from daemon import seccomp, spec_caps, spec_mounts
from daemon.spec_caps import parse_capability
from daemon.spec_mounts import parse_mount
from daemon.spec_parse import (
    SpecError,
    User,
    merge_env,
    parse_cpus,
    parse_env,
    parse_env_file,
    parse_memory,
    parse_memory_limit,
    parse_memory_swap,
    parse_rlimit,
    parse_signal,
    parse_user,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Any

    Spec = dict[str, Any]

__all__ = [
    "ExecOptions",
    "SpecError",
    "SpecOptions",
    "User",
    "build",
    "exec_process",
    "merge_env",
    "parse_capability",
    "parse_cpus",
    "parse_env",
    "parse_env_file",
    "parse_memory",
    "parse_memory_limit",
    "parse_memory_swap",
    "parse_mount",
    "parse_rlimit",
    "parse_signal",
    "parse_user",
    "validate",
]

OCI_VERSION = "1.0.2"
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TERMINAL_TYPE = "TERM=xterm"
STOP_SIGNAL_ANNOTATION = "org.opencontainers.image.stopSignal"  # OCI image-spec conversion.md
HOST_NETWORK_FILES = ("/etc/hosts", "/etc/resolv.conf")

# Kernel windows that tell or change something about the host. Source: containerd's and docker's lists.
MASKED_PATHS = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class SpecOptions:
    """Everything `build` can be told; each default is what a plain ``run`` means."""

    __slots__ = (
        "annotations", "args", "cap_add", "cap_drop", "container_id", "cpu_period_us", "cpu_quota_us", "cpu_shares",
        "cpuset_cpus", "cpuset_mems", "cwd", "devices", "env", "host_capabilities", "host_network_files", "hostname",
        "machine", "memory_bytes", "memory_swap_bytes", "mounts", "namespace", "net", "no_new_privileges",
        "oom_score_adj", "pids_limit", "privileged", "read_only", "rlimits", "rootfs", "seccomp", "shm_size_bytes",
        "stop_signal", "terminal", "user",
    )  # fmt: skip

    def __init__(
        self,
        *,
        namespace: str,
        container_id: str,
        args: "Sequence[str]",
        rootfs: str = "rootfs",
        env: "Sequence[str]" = (),
        cwd: str = "/",
        user: "User | None" = None,
        terminal: bool = False,
        hostname: "str | None" = None,
        mounts: "Sequence[Mapping[str, Any]]" = (),
        read_only: bool = False,
        shm_size_bytes: int = spec_mounts.SHM_SIZE_BYTES,
        memory_bytes: "int | None" = None,
        memory_swap_bytes: "int | None" = None,
        cpu_quota_us: "int | None" = None,
        cpu_period_us: "int | None" = None,
        cpu_shares: "int | None" = None,
        cpuset_cpus: str = "",
        cpuset_mems: str = "",
        pids_limit: "int | None" = None,
        cap_add: "Sequence[str]" = (),
        cap_drop: "Sequence[str]" = (),
        host_capabilities: "Collection[str] | None" = None,
        privileged: bool = False,
        devices: "Sequence[Mapping[str, Any]]" = (),
        no_new_privileges: "bool | None" = None,
        seccomp: "str | Mapping[str, Any]" = "default",
        net: str = "none",
        host_network_files: "Sequence[str]" = HOST_NETWORK_FILES,
        rlimits: "Sequence[Mapping[str, Any]]" = (),
        oom_score_adj: "int | None" = 0,
        stop_signal: "str | None" = None,
        annotations: "Mapping[str, str] | None" = None,
        machine: "str | None" = None,
    ) -> None:
        """Only what is not plain from the name:

        ``env`` adds to (and overrides) the default PATH, and TERM with a terminal. ``hostname`` is the id unless given.
        ``memory_swap_bytes`` is memory and swap together, -1 for no limit. ``devices`` are OCI device objects (see
        `hostfacts.devices`); each is made and allowed. ``host_capabilities`` is what this host can grant; None: all.
        ``no_new_privileges`` is on unless privileged, as with ctr: setuid programs in the container gain nothing, which
        takes away a whole class of escalation at the price of ``su`` and ``sudo`` for non-root users.
        ``seccomp``: ``default``, ``unconfined``, or an OCI seccomp object.
        ``net``: ``none`` (own network namespace with nothing in it), ``host``, or the path of a network namespace.
        ``host_network_files`` are bound read-only when the host's network is shared; pass only those that exist.
        ``rlimits`` are none by default: the container has the shim's, so nothing here can lie above the host's hard
        limits, which takes CAP_SYS_RESOURCE that not every host has.
        ``oom_score_adj`` is 0 and not inherited, so that a shim that protected itself does not protect the workload;
        None leaves it out. ``machine`` is uname -m, for the system-call filter.
        """
        self.namespace = namespace
        self.container_id = container_id
        self.args = args
        self.rootfs = rootfs
        self.env = env
        self.cwd = cwd
        self.user = user if user is not None else User()
        self.terminal = terminal
        self.hostname = hostname
        self.mounts = mounts
        self.read_only = read_only
        self.shm_size_bytes = shm_size_bytes
        self.memory_bytes = memory_bytes
        self.memory_swap_bytes = memory_swap_bytes
        self.cpu_quota_us = cpu_quota_us
        self.cpu_period_us = cpu_period_us
        self.cpu_shares = cpu_shares
        self.cpuset_cpus = cpuset_cpus
        self.cpuset_mems = cpuset_mems
        self.pids_limit = pids_limit
        self.cap_add = cap_add
        self.cap_drop = cap_drop
        self.host_capabilities = host_capabilities
        self.privileged = privileged
        self.devices = devices
        self.no_new_privileges = no_new_privileges
        self.seccomp = seccomp
        self.net = net
        self.host_network_files = host_network_files
        self.rlimits = rlimits
        self.oom_score_adj = oom_score_adj
        self.stop_signal = stop_signal
        self.annotations = annotations
        self.machine = machine


class ExecOptions:
    """A further process in a container. None means: as the container's own process."""

    __slots__ = ("args", "cap_add", "cap_drop", "cwd", "env", "host_capabilities", "privileged", "terminal", "user")

    def __init__(
        self,
        *,
        args: "Sequence[str]",
        env: "Sequence[str]" = (),
        cwd: "str | None" = None,
        user: "User | None" = None,
        terminal: bool = False,
        cap_add: "Sequence[str]" = (),
        cap_drop: "Sequence[str]" = (),
        host_capabilities: "Collection[str] | None" = None,
        privileged: bool = False,
    ) -> None:
        """``privileged`` gives all capabilities; the container's system-call filter and device rules stay."""
        self.args = args
        self.env = env
        self.cwd = cwd
        self.user = user
        self.terminal = terminal
        self.cap_add = cap_add
        self.cap_drop = cap_drop
        self.host_capabilities = host_capabilities
        self.privileged = privileged


def build(options: SpecOptions) -> "Spec":
    """The runtime spec of one container.

    Raises: SpecError when an option cannot be met.
    """
    capabilities = _capabilities(options)
    spec: Spec = {
        "ociVersion": OCI_VERSION,
        "process": _process(options, capabilities),
        "root": {"path": options.rootfs, "readonly": options.read_only},
        "hostname": options.hostname or options.container_id,
        "mounts": _mounts(options),
        "linux": _linux(options, capabilities),
    }
    annotations = dict(options.annotations or {})
    if options.stop_signal:
        parse_signal(options.stop_signal)
        annotations.setdefault(STOP_SIGNAL_ANNOTATION, options.stop_signal)
    if annotations:
        spec["annotations"] = annotations
    return spec


def exec_process(base_process: "Mapping[str, Any]", options: ExecOptions) -> "Spec":
    """The OCI process object of an exec: the container's own process with another program and what was asked for.

    Raises: SpecError when an option cannot be met.
    """
    process: Spec = {**base_process, "args": _args(options.args), "terminal": options.terminal}
    process.pop("consoleSize", None)
    process.pop("commandLine", None)
    extra = [TERMINAL_TYPE] if options.terminal else []
    process["env"] = merge_env(extra, base_process.get("env") or [], options.env)
    if options.cwd is not None:
        process["cwd"] = _cwd(options.cwd)
    if options.user is not None:
        process["user"] = _user(options.user)
    base = spec_caps.ALL if options.privileged else (base_process.get("capabilities") or {}).get("bounding") or ()
    available = options.host_capabilities
    chosen = spec_caps.resolve(base, options.cap_add, options.cap_drop, available)
    process["capabilities"] = spec_caps.as_process_field(chosen)
    if options.privileged:
        process["noNewPrivileges"] = False
    return process


def validate(spec: object) -> "list[str]":
    """What is wrong with a spec, each as ``json.path: what, and what to do``; empty when a runtime should take it."""
    from daemon.spec_validate import problems  # a spec we built ourselves needs no second look

    return problems(spec)


def _capabilities(options: SpecOptions) -> "list[str]":
    base = spec_caps.ALL if options.privileged else spec_caps.DEFAULT
    return spec_caps.resolve(base, options.cap_add, options.cap_drop, options.host_capabilities)


def _process(options: SpecOptions, capabilities: "Iterable[str]") -> "Spec":
    no_new_privileges = options.no_new_privileges
    if no_new_privileges is None:
        no_new_privileges = not options.privileged
    terminal = [TERMINAL_TYPE] if options.terminal else []
    process: Spec = {
        "terminal": options.terminal,
        "user": _user(options.user),
        "args": _args(options.args),
        "env": merge_env([DEFAULT_PATH], terminal, options.env),
        "cwd": _cwd(options.cwd),
        "capabilities": spec_caps.as_process_field(capabilities),
        "noNewPrivileges": no_new_privileges,
    }
    if options.rlimits:
        process["rlimits"] = [dict(each) for each in options.rlimits]
    if options.oom_score_adj is not None:
        process["oomScoreAdj"] = options.oom_score_adj
    return process


def _args(args: "Sequence[str]") -> "list[str]":
    if not args or not args[0]:
        raise SpecError("nothing to run: give the program and its arguments")
    return list(args)


def _cwd(cwd: str) -> str:
    if not cwd.startswith("/"):
        raise SpecError(f"working directory {cwd!r} must be an absolute path in the container")
    return cwd


def _user(user: User) -> "Spec":
    made: Spec = {"uid": user.uid, "gid": user.gid}
    if user.groups:
        made["additionalGids"] = list(user.groups)
    return made


def _mounts(options: SpecOptions) -> "list[Spec]":
    defaults = spec_mounts.default_mounts(shm_size_bytes=options.shm_size_bytes, writable_sys=options.privileged)
    if options.net == "host":
        defaults += spec_mounts.host_network_mounts(options.host_network_files)
    return spec_mounts.merge(defaults, [dict(each) for each in options.mounts])


def _linux(options: SpecOptions, capabilities: "Collection[str]") -> "Spec":
    linux: Spec = {
        "cgroupsPath": f"/{options.namespace}/{options.container_id}",
        "namespaces": _namespaces(options.net),
        "resources": _resources(options),
    }
    propagation = spec_mounts.rootfs_propagation(options.mounts)
    if propagation is not None:
        linux["rootfsPropagation"] = propagation
    if options.devices:
        linux["devices"] = [dict(each) for each in options.devices]
    if not options.privileged:
        linux["maskedPaths"] = list(MASKED_PATHS)
        linux["readonlyPaths"] = list(READONLY_PATHS)
    filtered = _seccomp(options, capabilities)
    if filtered is not None:
        linux["seccomp"] = filtered
    return linux


def _namespaces(net: str) -> "list[Spec]":
    kinds: list[Spec] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
    if net == "none":
        kinds.append({"type": "network"})
    elif net.startswith("/"):
        kinds.append({"type": "network", "path": net})
    elif net != "host":
        raise SpecError(f"net {net!r} is not known: use none, host, or the path of a network namespace")
    return kinds


def _resources(options: SpecOptions) -> "Spec":
    # The runtime adds the few devices every container has (null, zero, full, random, urandom, tty, ptmx, console, pts).
    rules: list[Spec] = [{"allow": options.privileged, "access": "rwm"}]
    if not options.privileged:
        rules += [
            {"allow": True, "type": each["type"], "major": each["major"], "minor": each["minor"], "access": "rwm"}
            for each in options.devices
        ]
    resources: Spec = {"devices": rules}
    if options.memory_swap_bytes is not None and options.memory_bytes is None:
        raise SpecError("a swap limit needs a memory limit: it is memory and swap together")
    memory = _given(limit=options.memory_bytes, swap=options.memory_swap_bytes)
    if memory.get("swap", -1) != -1 and memory["swap"] < memory["limit"]:
        raise SpecError("the swap limit is memory and swap together, so it cannot be less than the memory limit")
    cpu = _given(
        shares=options.cpu_shares,
        quota=options.cpu_quota_us,
        period=options.cpu_period_us,
        cpus=options.cpuset_cpus or None,
        mems=options.cpuset_mems or None,
    )
    if memory:
        resources["memory"] = memory
    if cpu:
        resources["cpu"] = cpu
    if options.pids_limit is not None:
        resources["pids"] = {"limit": options.pids_limit}
    return resources


def _given(**values: "Any") -> "Spec":
    return {name: value for name, value in values.items() if value is not None}


def _seccomp(options: SpecOptions, capabilities: "Collection[str]") -> "Spec | None":
    if not isinstance(options.seccomp, str):
        return dict(options.seccomp)
    if options.seccomp == "unconfined" or (options.privileged and options.seccomp == "default"):
        return None
    if options.seccomp != "default":
        raise SpecError(f"seccomp {options.seccomp!r} is not known: use default, unconfined, or a profile")
    return seccomp.default_profile(capabilities, options.machine or os.uname().machine)
