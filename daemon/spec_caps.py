"""Capabilities by name and number: the default set, and what adding and dropping makes of it. Pure."""

from daemon.spec_parse import SpecError, did_you_mean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

# In the order of their numbers. Source: capabilities(7), linux/capability.h up to 40 (kernel 5.9).
_ALL = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
# What docker and containerd give a container nobody said anything about.
_DEFAULT = """
    CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL
    AUDIT_WRITE
"""
ALL = tuple(f"CAP_{name}" for name in _ALL.split())
DEFAULT = tuple(f"CAP_{name}" for name in _DEFAULT.split())


def parse_capability(text: str) -> str:
    """``net_admin``, ``CAP_NET_ADMIN`` → ``CAP_NET_ADMIN``; ``all`` → ``ALL``."""
    name = text.strip().upper()
    if name == "ALL":
        return name
    full = name if name.startswith("CAP_") else f"CAP_{name}"
    if full not in ALL:
        raise SpecError(f"capability {text!r} is not known{did_you_mean(full, ALL)}")
    return full


def resolve(
    base: "Iterable[str]",
    add: "Iterable[str]" = (),
    drop: "Iterable[str]" = (),
    available: "Collection[str] | None" = None,
) -> "list[str]":
    """The set after dropping and adding, in the order of the numbers.

    ``ALL`` in either list goes first, the named ones after it: drop ALL with add CHOWN leaves CHOWN, add ALL with drop
    CHOWN leaves the rest. ``available`` is what this host can grant (see `from_mask`): sets are cut to it silently, a
    capability added by name that it lacks is refused, because runc would fail with less to say.
    """
    added = [parse_capability(each) for each in add]
    dropped = [parse_capability(each) for each in drop]
    both = sorted(set(added) & set(dropped))
    if both:
        raise SpecError(f"capability {both[0]} is both added and dropped: leave out one of the two")
    chosen = set() if "ALL" in dropped else set(base)
    if "ALL" in added:
        chosen = set(ALL)
    chosen = (chosen - set(dropped)) | (set(added) - {"ALL"})
    if available is not None:
        missing = [each for each in added if each != "ALL" and each not in available]
        if missing:
            raise SpecError(f"capability {missing[0]} cannot be given: this host's own capabilities lack it")
        chosen &= set(available)
    return [each for each in ALL if each in chosen]


def from_mask(mask: int) -> "tuple[str, ...]":
    """The names of a capability mask as /proc/<pid>/status shows it; numbers without a name are left out."""
    return tuple(name for number, name in enumerate(ALL) if mask >> number & 1)


def as_process_field(capabilities: "Iterable[str]") -> "dict[str, list[str]]":
    """The OCI ``process.capabilities`` object.

    Neither inheritable nor ambient: a set inheritable lets a non-root process regain them through file capabilities
    (CVE-2022-24769), so a process that is not root starts with none, as with docker and containerd.
    """
    names = list(capabilities)
    return {"bounding": names, "effective": list(names), "permitted": list(names)}
