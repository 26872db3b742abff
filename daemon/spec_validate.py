"""What a runtime would choke on in a spec, and what people get wrong by hand. Pure.

First the shape (`spec_schema`); a spec of the wrong shape is not looked at further. Then one function per part.
"""

import posixpath

from daemon import spec_caps, spec_parse, spec_schema
from daemon.spec_parse import RLIMITS, did_you_mean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    Object = dict[str, Any]

NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
# Mounts of these types, or with these options, are binds: they need a source that exists.
_BIND = ("bind", "rbind")
_SECCOMP_ACTIONS = (
    "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP", "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE", "SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY",
)  # fmt: skip
_SECCOMP_OPERATORS = tuple(f"SCMP_CMP_{each}" for each in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
# Which namespace makes a kernel setting the container's own. Source: ipc_namespaces(7), uts_namespaces(7); runc refuses
# every other, since it would change the host.
_SYSCTL_NAMESPACE = (
    ("net.", "network"), ("fs.mqueue.", "ipc"), ("kernel.msg", "ipc"), ("kernel.shm", "ipc"), ("kernel.sem", "ipc"),
    ("kernel.domainname", "uts"),
)  # fmt: skip


def problems(spec: object) -> "list[str]":
    """Everything wrong, each as ``json.path: what, and what to do``; empty when a runtime should take it."""
    if not isinstance(spec, dict):
        return ["spec: must be a JSON object; a bundle's config.json is one"]
    shape = list(spec_schema.misshapen(spec, spec_schema.SPEC))
    found = [text for text, _ in shape]
    if any(breaks for _, breaks in shape):
        return found
    for part in (_version, _process, _root, _mounts, _hooks, _linux, _namespace_needs):
        found += part(spec)
    return found


def _version(spec: "Object") -> "Iterator[str]":
    version = spec.get("ociVersion") or ""
    if not version:
        yield 'ociVersion: is missing; add "ociVersion": "1.0.2"'
    elif not version.startswith("1."):
        yield f"ociVersion: {version!r} is not supported; runtimes take 1.x"


def _process(spec: "Object") -> "Iterator[str]":
    process = spec.get("process")
    if not process:
        yield "process: is missing; it says what to run (args, cwd, user)"
        return
    if not process.get("args"):
        yield 'process.args: is empty; give the program, such as ["/bin/sh"]'
    elif not process["args"][0]:
        yield "process.args[0]: is an empty string; give the program"
    yield from _strings_without_nul("process.args", process.get("args") or ())
    cwd = process.get("cwd") or ""
    if not cwd.startswith("/"):
        yield f'process.cwd: {cwd!r} is not absolute; use "/" or a path from the root of the container'
    yield from _environment("process.env", process.get("env") or ())
    user = process.get("user") or {}
    for key in ("uid", "gid"):
        if (user.get(key) or 0) > spec_parse.ID_MAX:
            yield f"process.user.{key}: {user[key]} is too large; ids end at {spec_parse.ID_MAX}"
    yield from _capabilities(process.get("capabilities") or {})
    yield from _rlimits(process.get("rlimits") or ())
    adjustment = process.get("oomScoreAdj")
    if adjustment is not None and not -1000 <= adjustment <= 1000:
        yield f"process.oomScoreAdj: {adjustment} is out of range; -1000 to 1000"


def _strings_without_nul(path: str, strings: "Iterable[str]") -> "Iterator[str]":
    for index, each in enumerate(strings):
        if "\0" in each:
            yield f"{path}[{index}]: contains a NUL byte; the kernel takes none"


def _environment(path: str, entries: "Iterable[str]") -> "Iterator[str]":
    for index, entry in enumerate(entries):
        name, equals, _ = entry.partition("=")
        if not equals or not name:
            yield f"{path}[{index}]: {entry!r} is no NAME=value"
    yield from _strings_without_nul(path, entries)


def _capabilities(capabilities: "Object") -> "Iterator[str]":
    for kind, names in capabilities.items():
        for index, name in enumerate(names or ()):
            if name not in spec_caps.ALL:
                hint = did_you_mean(name, spec_caps.ALL) or did_you_mean(f"CAP_{name}", spec_caps.ALL)
                yield f"process.capabilities.{kind}[{index}]: {name!r} is no capability{hint}"
    bounding, permitted = (set(capabilities.get(kind) or ()) for kind in ("bounding", "permitted"))
    for kind, limit, of in (("effective", permitted, "permitted"), ("permitted", bounding, "bounding")):
        beyond = sorted(set(capabilities.get(kind) or ()) - limit)
        if beyond:
            yield f"process.capabilities.{kind}: {beyond[0]} is not in {of}; add it there, or leave it out here"


def _rlimits(rlimits: "Iterable[Object]") -> "Iterator[str]":
    seen: set[str] = set()
    for index, limit in enumerate(rlimits):
        path, kind = f"process.rlimits[{index}]", str(limit.get("type"))
        if kind.removeprefix("RLIMIT_") not in RLIMITS or not kind.startswith("RLIMIT_"):
            near = did_you_mean(f"RLIMIT_{kind.removeprefix('RLIMIT_')}", [f"RLIMIT_{name}" for name in RLIMITS])
            yield f"{path}.type: {kind!r} is no resource limit{near}"
        if kind in seen:
            yield f"{path}.type: {kind} is there twice; keep one"
        seen.add(kind)
        if limit.get("soft", 0) > limit.get("hard", 0):
            yield f"{path}.soft: exceeds hard; lower it, or raise hard"


def _root(spec: "Object") -> "Iterator[str]":
    if not (spec.get("root") or {}).get("path"):
        yield 'root.path: is missing; give the root filesystem, such as "rootfs" (below the bundle) or an absolute path'


def _mounts(spec: "Object") -> "Iterator[str]":
    for index, mount in enumerate(spec.get("mounts") or ()):
        path = f"mounts[{index}]"
        destination = mount.get("destination") or ""
        if not destination.startswith("/"):
            yield f"{path}.destination: {destination!r} is not absolute; give a path from the root of the container"
        elif posixpath.normpath(destination) == "/":
            yield f"{path}.destination: is / itself; set root.path instead"
        options, kind = mount.get("options") or [], mount.get("type") or ""
        is_bind = bool(set(options) & set(_BIND))
        if kind in _BIND and not is_bind:
            yield f'{path}.options: a {kind} mount needs "bind" or "rbind" here; its type alone does nothing'
        if (is_bind or kind in _BIND) and not mount.get("source"):
            yield f"{path}.source: is missing; a bind mount needs the path on the host"
        if not is_bind and not kind:
            yield f'{path}.type: is missing; "tmpfs", "proc", ..., or "bind" with "rbind" among the options'


def _hooks(spec: "Object") -> "Iterator[str]":
    for stage, hooks in (spec.get("hooks") or {}).items():
        for index, hook in enumerate(hooks or ()):
            path = f"hooks.{stage}[{index}]"
            if not (hook.get("path") or "").startswith("/"):
                yield f"{path}.path: {hook.get('path')!r} is not absolute; name the program with its whole path"
            if hook.get("timeout") is not None and hook["timeout"] <= 0:
                yield f"{path}.timeout: must be more than zero seconds; or leave it out"
            yield from _environment(f"{path}.env", hook.get("env") or ())


def _linux(spec: "Object") -> "Iterator[str]":
    linux = spec.get("linux") or {}
    for name in ("maskedPaths", "readonlyPaths"):
        for index, path in enumerate(linux.get(name) or ()):
            if not path.startswith("/"):
                yield f"linux.{name}[{index}]: {path!r} is not absolute; give a path from the root of the container"
    if ".." in (linux.get("cgroupsPath") or "").split("/"):
        yield "linux.cgroupsPath: contains '..'; name the cgroup from the root of the hierarchy"
    for index, device in enumerate(linux.get("devices") or ()):
        if not (device.get("path") or "").startswith("/"):
            yield f"linux.devices[{index}].path: {device.get('path')!r} is not absolute"
        if device.get("type") not in ("b", "c", "u", "p"):
            yield f"linux.devices[{index}].type: {device.get('type')!r} is none of b, c, u, p"
    yield from resources_problems(linux.get("resources") or {}, "linux.resources")
    yield from _seccomp(linux.get("seccomp") or {})


def resources_problems(resources: "Object", path: str = "resources") -> "Iterator[str]":
    """The rules of ``linux.resources``, for updates as well; the shape must have been checked."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    limit, swap = memory.get("limit"), memory.get("swap")
    if limit == 0 or (limit or 0) < -1:
        yield f"{path}.memory.limit: {limit} is no limit; give bytes, or -1 for none"
    if swap is not None and swap > 0:
        if limit is None or limit <= 0:
            yield f"{path}.memory.swap: needs memory.limit as well; it is memory and swap together"
        elif swap < limit:
            yield f"{path}.memory.swap: is less than memory.limit; it is memory and swap together"
    if (memory.get("swappiness") or 0) > 100:
        yield f"{path}.memory.swappiness: must be 0 to 100"
    quota, period = cpu.get("quota"), cpu.get("period")
    if quota is not None and 0 < quota < spec_parse.CPU_QUOTA_MIN_US:
        yield f"{path}.cpu.quota: {quota} is too little; the kernel's smallest is 1000 microseconds, -1 is no limit"
    if period and not 1_000 <= period <= 1_000_000:
        yield f"{path}.cpu.period: {period} is out of range; 1000 to 1000000 microseconds"
    for name in ("cpus", "mems"):
        if not _is_cpu_list(cpu.get(name) or ""):
            yield f"{path}.cpu.{name}: {cpu[name]!r} is no list of numbers; write something like 0-2,4"
    for index, rule in enumerate(resources.get("devices") or ()):
        if (rule.get("type") or "a") not in ("a", "b", "c"):
            yield f"{path}.devices[{index}].type: {rule['type']!r} is none of a, b, c"
        if not set(rule.get("access") or "rwm") <= set("rwm"):
            yield f"{path}.devices[{index}].access: {rule['access']!r} may only hold the letters r, w and m"


def _is_cpu_list(text: str) -> bool:
    for part in text.split(",") if text else ():
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not (last.isdigit() and int(last) >= int(first))):
            return False
    return True


def _seccomp(seccomp: "Object") -> "Iterator[str]":
    if not seccomp:
        return
    actions: list[tuple[str, object]] = [("linux.seccomp.defaultAction", seccomp.get("defaultAction"))]
    for index, rule in enumerate(seccomp.get("syscalls") or ()):
        path = f"linux.seccomp.syscalls[{index}]"
        actions.append((f"{path}.action", rule.get("action")))
        if not rule.get("names"):
            yield f"{path}.names: is empty; name the system calls the rule is for"
        if rule.get("errnoRet") is not None and rule.get("action") not in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
            yield f"{path}.errnoRet: only SCMP_ACT_ERRNO and SCMP_ACT_TRACE take one; leave it out"
        for number, arg in enumerate(rule.get("args") or ()):
            if (arg.get("index") or 0) > 5:
                yield f"{path}.args[{number}].index: a system call has arguments 0 to 5"
            if arg.get("op") not in _SECCOMP_OPERATORS:
                near = did_you_mean(str(arg.get("op")), _SECCOMP_OPERATORS)
                yield f"{path}.args[{number}].op: {arg.get('op')!r} is no comparison{near}"
    for where, action in actions:
        if action not in _SECCOMP_ACTIONS:
            yield f"{where}: {action!r} is no action{did_you_mean(str(action), _SECCOMP_ACTIONS)}"


def _namespace_needs(spec: "Object") -> "Iterator[str]":
    """What only works in a namespace of the container's own; a runtime refuses it otherwise, for the host's sake."""
    linux = spec.get("linux") or {}
    kinds = [str(each.get("type")) for each in linux.get("namespaces") or ()]
    for index, each in enumerate(linux.get("namespaces") or ()):
        path, kind = f"linux.namespaces[{index}]", kinds[index]
        if kind not in NAMESPACES:
            yield f"{path}.type: {kind!r} is no namespace{did_you_mean(kind, NAMESPACES)}"
        elif kind in kinds[:index]:
            yield f"{path}.type: {kind} is there twice; keep one"
        if each.get("path") and not each["path"].startswith("/"):
            yield f"{path}.path: {each['path']!r} is not absolute; such as /proc/<pid>/ns/{kind}"

    def needs(what: str, present: object, kind: str) -> "Iterator[str]":
        if present and kind not in kinds:
            yield f'{what}: needs a namespace of its own; add {{"type": "{kind}"}} to linux.namespaces, or leave it out'

    yield from needs("hostname", spec.get("hostname"), "uts")
    yield from needs("domainname", spec.get("domainname"), "uts")
    yield from needs("mounts", spec.get("mounts"), "mount")
    yield from needs("linux.maskedPaths", linux.get("maskedPaths"), "mount")
    yield from needs("linux.readonlyPaths", linux.get("readonlyPaths"), "mount")
    yield from needs("linux.uidMappings", linux.get("uidMappings"), "user")
    yield from needs("linux.gidMappings", linux.get("gidMappings"), "user")
    for name in linux.get("sysctl") or ():
        own = next((kind for prefix, kind in _SYSCTL_NAMESPACE if name.startswith(prefix)), None)
        if name == "kernel.hostname":
            yield f"linux.sysctl.{name}: set the spec's hostname instead"
        elif own is None:
            yield f"linux.sysctl.{name}: belongs to no namespace, it would change the host; set it there instead"
        else:
            yield from needs(f"linux.sysctl.{name}", True, own)
