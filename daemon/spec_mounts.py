"""Mounts: the ones every container gets, and those people type. Pure."""

import posixpath

from daemon.spec_parse import SpecError, did_you_mean, parse_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    Mount = dict[str, Any]

SHM_SIZE_BYTES = 64 * 2**20  # as docker and containerd
PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable")
# Types a mount may be of without a source of its own: the kernel names the instance after the type.
_SOURCELESS = ("tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2")
_KEYS = (
    "type", "src", "source", "dst", "destination", "target", "ro", "readonly", "rw", "options", "bind-propagation",
    "bind-recursive", "tmpfs-size", "tmpfs-mode", "size", "mode",
)  # fmt: skip


def default_mounts(*, shm_size_bytes: int = SHM_SIZE_BYTES, writable_sys: bool = False) -> "list[Mount]":
    """What a Linux program expects to find. Source: OCI runtime-spec config-linux.md, plus containerd's /run."""
    sys_mode = "rw" if writable_sys else "ro"
    return [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"
        ),
        _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", f"size={shm_size_bytes}"),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", sys_mode),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", sys_mode),
        _mount("/run", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
    ]


def host_network_mounts(files: "Iterable[str]") -> "list[Mount]":
    """The host's own name resolution, read-only, for a container that shares its network (as ctr --net-host does)."""
    return [_mount(path, "bind", path, "rbind", "ro") for path in files]


def merge(defaults: "Iterable[Mount]", own: "Iterable[Mount]") -> "list[Mount]":
    """Both lists as one: an own mount stands in for a default on the same path, the others follow, outer before inner.

    Order: the runtime mounts them as listed, so one that lay inside a later one would be hidden.
    """
    chosen: dict[str, Mount] = {}
    for each in own:
        where = posixpath.normpath(each["destination"])
        if where in chosen:
            raise SpecError(f"two mounts on {where}: leave out one of them")
        chosen[where] = each
    merged = [chosen.pop(each["destination"], each) for each in defaults]
    return merged + sorted(chosen.values(), key=lambda each: posixpath.normpath(each["destination"]).count("/"))


def rootfs_propagation(own: "Iterable[Mapping[str, Any]]") -> "str | None":
    """What the root mount must be so that the mounts' own propagation can work; None: the runtime's default will do.

    A mount can only be shared or slave when the tree it is copied from was not made private on the way.
    """
    options = {option for each in own for option in each.get("options") or ()}
    if options & {"shared", "rshared"}:
        return "rshared"
    return "rslave" if options & {"slave", "rslave"} else None


def _mount(destination: str, kind: str, source: str, *options: str) -> "Mount":
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def parse_mount(text: str) -> "Mount":
    """One mount as typed, in any of three manners, as an OCI mount.

    ``type=bind,src=/a,dst=/b,ro`` (docker), ``type=bind,src=/a,dst=/b,options=rbind:ro`` (ctr),
    ``/a:/b:ro`` (docker -v).
    A field with a comma in it is quoted as in CSV: ``type=bind,"src=/a,b",dst=/c``.
    """
    if not text.strip():
        raise SpecError(
            "an empty mount: write type=bind,src=/host/path,dst=/container/path or /host/path:/container/path"
        )
    if text.startswith(("/", ".", "~")):
        return _parse_volume(text)
    return _parse_fields(text)


def _parse_volume(text: str) -> "Mount":
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise SpecError(f"mount {text!r}: write /host/path:/container/path, with :ro or other options at the end")
    options = parts[2].split(",") if len(parts) == 3 else []
    for option in options:
        if option not in ("ro", "rw", "bind", "rbind", "z", "Z", *PROPAGATIONS):
            known = ("ro", "rw", "rbind", *PROPAGATIONS)
            raise SpecError(f"mount {text!r}: option {option!r} is not known{did_you_mean(option, known)}")
    # z and Z relabel for SELinux in docker; without SELinux they mean nothing, so old command lines go on working.
    return _bind(text, parts[0], parts[1], [option for option in options if option not in ("z", "Z")])


def _bind(text: str, source: str, destination: str, options: "Iterable[str]") -> "Mount":
    if not source.startswith("/"):
        raise SpecError(f"mount {text!r}: the source {source!r} must be an absolute path on the host")
    chosen = list(options)
    if not {"bind", "rbind"} & set(chosen):
        chosen.insert(0, "rbind")
    if not set(PROPAGATIONS) & set(chosen):
        # The kernel's default is the parent's propagation, shared on systemd hosts: a mount made inside would show
        # outside.
        chosen.append("rprivate")
    if not {"ro", "rw"} & set(chosen):
        chosen.append("rw")
    return _mount(_destination(text, destination), "bind", posixpath.normpath(source), *chosen)


def _destination(text: str, path: str) -> str:
    if not path.startswith("/"):
        raise SpecError(f"mount {text!r}: the destination {path!r} must be an absolute path in the container")
    where = posixpath.normpath(path)
    if where in ("/", "//"):
        raise SpecError(f"mount {text!r}: the destination cannot be / itself; use another root filesystem")
    return where


def _split(text: str) -> "list[str]":
    if '"' not in text:
        return text.split(",")
    import csv  # only for the rare path with a comma in it

    rows = list(csv.reader([text], strict=True))
    return rows[0]


def _parse_fields(text: str) -> "Mount":
    fields: dict[str, str] = {}
    options: list[str] = []
    for field in _split(text):
        key, equals, value = field.strip().partition("=")
        key = {"source": "src", "destination": "dst", "target": "dst", "readonly": "ro"}.get(key, key)
        if key == "options":
            options += [each for each in value.split(":") if each]
        elif key in ("ro", "rw"):
            on = value.lower() not in ("false", "0")
            options.append("ro" if (key == "ro") is on else "rw")
        elif key == "bind-recursive":
            options.append("rbind" if value.lower() in ("", "true", "1", "enabled") else "bind")
        elif key == "bind-propagation":
            if value not in PROPAGATIONS:
                near = did_you_mean(value, PROPAGATIONS)
                raise SpecError(f"mount {text!r}: propagation {value!r} is not known{near}")
            options.append(value)
        elif key in _KEYS and equals:
            if key in fields:
                raise SpecError(f"mount {text!r} says {key} twice")
            fields[key] = value
        elif not equals and (key in PROPAGATIONS or key in ("bind", "rbind")):
            options.append(key)
        else:
            raise SpecError(f"mount {text!r}: {field!r} is no field of a mount{did_you_mean(key, _KEYS)}")
    return _from_fields(text, fields, options)


def _from_fields(text: str, fields: "dict[str, str]", options: "list[str]") -> "Mount":
    kind = fields.get("type") or ("bind" if "src" in fields else "")
    if not kind:
        raise SpecError(f"mount {text!r} has no type: begin with type=bind or type=tmpfs")
    if kind == "volume":
        raise SpecError(f"mount {text!r}: there are no named volumes here; use type=bind with a directory of the host")
    if not fields.get("dst"):
        raise SpecError(f"mount {text!r} has no destination: add dst=/path/in/the/container")
    if kind != "tmpfs" and (wrong := sorted({"tmpfs-size", "tmpfs-mode", "size", "mode"} & set(fields))):
        raise SpecError(f"mount {text!r}: {wrong[0]} belongs to type=tmpfs only")
    if kind == "bind":
        if not fields.get("src"):
            raise SpecError(f"mount {text!r} has no source: add src=/path/on/the/host")
        return _bind(text, fields["src"], fields["dst"], options)
    if kind == "tmpfs":
        options = _tmpfs_options(text, fields, options)
    source = fields.get("src") or (kind if kind in _SOURCELESS else "")
    if not source:
        raise SpecError(f"mount {text!r}: type={kind} needs a source: add src=")
    return _mount(_destination(text, fields["dst"]), kind, source, *options)


def _tmpfs_options(text: str, fields: "dict[str, str]", options: "list[str]") -> "list[str]":
    """Closed unless opened: no setuid, no devices, no programs, as docker's tmpfs mounts."""
    closed = [no for no, yes in (("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec")) if yes not in options]
    made = closed + [each for each in options if each not in closed]
    size = fields.get("tmpfs-size") or fields.get("size")
    if size:
        made.append(f"size={parse_memory(size)}")
    mode = fields.get("tmpfs-mode") or fields.get("mode")
    if mode:
        if not mode.isdigit() or set(mode) & set("89") or len(mode) > 5:
            raise SpecError(f"mount {text!r}: mode {mode!r} must be octal, such as 1777")
        made.append(f"mode={mode}")
    return made
