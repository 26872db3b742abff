"""What people type (``512m``, ``1.5``, ``name:group``, ``A=b``) into values of the OCI runtime spec. Pure, no I/O.

Every parser raises `SpecError` with a sentence that names the input and says what to write instead.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# CFS works in slices of this length unless told otherwise; the kernel's default (kernel: scheduler/sched-bwc.rst).
CPU_PERIOD_US = 100_000
# The kernel refuses quotas below 1 ms (kernel: min_cfs_quota_period).
CPU_QUOTA_MIN_US = 1_000
# (uid_t)-1 means "leave unchanged" in setresuid(2), so the largest usable id is one below.
ID_MAX = 2**32 - 2
# The runtime itself is in the cgroup while it makes the container, and needs 2 to 3 MiB (runc 1.1); docker's least.
MEMORY_MIN_BYTES = 6 * 2**20
# The spec's limits are int64 (OCI runtime spec, LinuxMemory).
_SIZE_MAX = 2**63 - 1

_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50}

# setrlimit(2); the names as the OCI spec takes them, without the RLIMIT_ prefix.
_RLIMITS = "AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK"
RLIMITS = tuple(_RLIMITS.split())


class SpecError(ValueError):
    """Something typed cannot become part of a runtime spec. The message says what to write instead."""


class User:
    """Whom a process runs as, by number."""

    __slots__ = ("gid", "groups", "uid")

    def __init__(self, uid: int = 0, gid: int = 0, groups: "tuple[int, ...]" = ()) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, User):
            return NotImplemented
        return (self.uid, self.gid, self.groups) == (other.uid, other.gid, other.groups)

    def __hash__(self) -> int:
        return hash((self.uid, self.gid, self.groups))

    def __repr__(self) -> str:
        return f"User(uid={self.uid}, gid={self.gid}, groups={self.groups})"


def did_you_mean(name: str, known: "Iterable[str]", cutoff: float = 0.6) -> str:
    """``" (did you mean 'x'?)"`` when a known name is close (difflib's ratio), else nothing."""
    import difflib  # only on the way to an error

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]!r}?)" if close else ""


def parse_memory(text: str) -> int:
    """``512m``, ``1.5g``, ``64MiB``, ``1048576`` as bytes; units are powers of 1024, as docker reads them."""
    lowered = text.strip().lower()
    number = lowered.rstrip("bikmgtp")
    unit = lowered[len(number) :]
    scale = _UNITS.get(unit[:1] if unit in ("", "b") or unit[1:] in ("", "b", "ib") else "?")
    amount = _decimal(number)
    if scale is None or amount is None:
        raise SpecError(f"memory {text!r} is no size: write a number with b, k, m, g or t, such as 512m")
    if amount <= 0:
        raise SpecError(f"memory {text!r} must be more than zero")
    if amount * scale > _SIZE_MAX:
        raise SpecError(f"memory {text!r} is more than there can be; the unit is b, k, m, g or t, as in 512m")
    return int(amount * scale)


def parse_memory_limit(text: str) -> int:
    """As `parse_memory`, for what a container may use: less than the runtime itself needs is refused."""
    size = parse_memory(text)
    if size < MEMORY_MIN_BYTES:
        raise SpecError(f"memory {text!r} is too little for a container to be made in: the least is 6m, as with docker")
    return size


def parse_memory_swap(text: str) -> int:
    """As `parse_memory`, for memory and swap together; ``-1`` (or ``unlimited``) is no limit."""
    if text.strip() in ("-1", "unlimited"):
        return -1
    return parse_memory(text)


def parse_cpus(text: str) -> "tuple[int, int]":
    """``1.5`` CPUs as (quota, period) in microseconds for the CFS bandwidth controller."""
    amount = _decimal(text.strip())
    if amount is None or amount <= 0:
        raise SpecError(f"cpus {text!r} is no number of CPUs: write something like 0.5 or 2")
    quota_us = round(amount * CPU_PERIOD_US)
    if quota_us < CPU_QUOTA_MIN_US:
        raise SpecError(f"cpus {text!r} is too little: the kernel's smallest share is 0.01")
    return quota_us, CPU_PERIOD_US


def _decimal(text: str) -> "float | None":
    """A plain decimal number; None for anything else (float() also takes nan, inf, 1e3 and 1_000)."""
    whole, dot, fraction = text.partition(".")
    digits = whole + fraction
    if not digits.isascii() or not digits.isdigit() or (dot and not fraction):
        return None
    return float(text)


def parse_env(items: "Iterable[str]", environ: "Mapping[str, str] | None" = None) -> "list[str]":
    """``NAME=value`` entries, checked; a bare ``NAME`` takes its value from ``environ``, or is left out when unset."""
    made = []
    for item in items:
        name, equals, _ = item.partition("=")
        _check_env_name(name, item)
        if "\0" in item:
            raise SpecError(f"environment {name!r}: a value cannot contain a NUL byte")
        if equals:
            made.append(item)
        elif environ is not None and name in environ:
            made.append(f"{name}={environ[name]}")
    return made


def parse_env_file(text: str, environ: "Mapping[str, str] | None" = None) -> "list[str]":
    """The entries of an env file, docker's way: one per line, ``#`` starts a comment line, quotes are kept."""
    made: list[str] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        entry = line.removesuffix("\r").lstrip()
        if not entry or entry.startswith("#"):
            continue
        name, _, _ = entry.partition("=")
        try:
            if name != name.rstrip():
                raise SpecError(f"environment {name!r} ends in a blank: write NAME=value without blanks around '='")
            made += parse_env([entry], environ)
        except SpecError as error:
            raise SpecError(f"line {number}: {error}") from None
    return made


def _check_env_name(name: str, item: str) -> None:
    if not name:
        raise SpecError(f"environment {item!r} has no name: write NAME=value")
    if any(blank in name for blank in " \t\0"):
        raise SpecError(f"environment name {name!r} contains a blank: write NAME=value")


def merge_env(*lists: "Iterable[str]") -> "list[str]":
    """Several lists in one: a later value wins, at the place of the first."""
    merged: dict[str, str] = {}
    for entries in lists:
        for entry in entries:
            merged[entry.partition("=")[0]] = entry
    return list(merged.values())


def parse_user(text: str, passwd: str = "", group: str = "") -> User:
    """``uid[:gid]`` or ``name[:group]``; names are looked up in the given texts of /etc/passwd and /etc/group.

    A user found in ``passwd`` brings its primary group, and its supplementary ones unless a group is named.
    A bare number that is not in ``passwd`` gets group 0, as runc and docker do.
    """
    user_text, colon, group_text = text.partition(":")
    if not user_text or (colon and not group_text):
        raise SpecError(f"user {text!r} is incomplete: write uid, uid:gid, name or name:group")
    rows = _rows(passwd, 4)
    found = _row(rows, user_text)
    if found is None and not user_text.isdigit():
        known = [row[0] for row in rows]
        where = did_you_mean(user_text, known) or " (use a numeric uid)"
        raise SpecError(f"user {user_text!r} is not in the root filesystem's /etc/passwd{where}")
    uid = _number(found[2] if found else user_text, f"uid of {text!r}")
    gid = _number(found[3], f"gid of {text!r} in /etc/passwd") if found else 0
    group_rows = _rows(group, 3)
    if group_text:
        group_found = _row(group_rows, group_text)
        if group_found is None and not group_text.isdigit():
            where = did_you_mean(group_text, [row[0] for row in group_rows]) or " (use a numeric gid)"
            raise SpecError(f"group {group_text!r} is not in the root filesystem's /etc/group{where}")
        return User(uid, _number(group_found[2] if group_found else group_text, f"gid of {text!r}"))
    name = found[0] if found else None
    groups = [row[2] for row in group_rows if name is not None and len(row) > 3 and name in row[3].split(",")]
    return User(uid, gid, tuple(_number(each, "gid in /etc/group") for each in groups))


def _rows(text: str, columns: int) -> "list[list[str]]":
    """The usable rows of a passwd-like file; NIS lines and broken ones are skipped, as libc does."""
    rows = [line.split(":") for line in text.splitlines() if line.strip() and line[0] not in "#+-"]
    return [row for row in rows if len(row) >= columns]


def _row(rows: "list[list[str]]", wanted: str) -> "list[str] | None":
    """A row by name, else by number (third column)."""
    for row in rows:
        if row[0] == wanted:
            return row
    for row in rows:
        if row[2] == wanted:
            return row
    return None


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > ID_MAX:
        raise SpecError(f"{what} is {text!r}: it must be a number from 0 to {ID_MAX}")
    return int(text)


def parse_rlimit(text: str) -> "dict[str, str | int]":
    """``nofile=1024:4096`` or ``core=unlimited`` as an OCI rlimit; one number is both soft and hard."""
    name, equals, limits = text.partition("=")
    known = name.strip().upper().removeprefix("RLIMIT_")
    if known not in RLIMITS:
        near = did_you_mean(known.lower(), [each.lower() for each in RLIMITS])
        raise SpecError(f"ulimit {text!r}: {name!r} is no resource limit{near}")
    soft_text, colon, hard_text = limits.partition(":")
    values = [_rlimit_value(each) for each in (soft_text, hard_text if colon else soft_text)]
    if not equals or None in values:
        raise SpecError(f"ulimit {text!r}: write {known.lower()}=SOFT or {known.lower()}=SOFT:HARD")
    soft, hard = values
    assert soft is not None
    assert hard is not None
    if soft > hard:
        raise SpecError(f"ulimit {text!r}: the soft limit may not exceed the hard one")
    return {"type": f"RLIMIT_{known}", "soft": soft, "hard": hard}


def _rlimit_value(text: str) -> "int | None":
    if text in ("-1", "unlimited"):
        return 2**64 - 1  # RLIM_INFINITY
    return int(text) if text.isascii() and text.isdigit() else None


def parse_signal(text: str) -> int:
    """``TERM``, ``SIGTERM``, ``15``, ``RTMIN+3`` as a number."""
    import signal  # enum behind it: only when a signal is named

    name = text.strip().upper()
    if name.isascii() and name.isdigit():
        number = int(name)
        if 1 <= number < signal.NSIG:
            return number
        raise SpecError(f"signal {text!r} is out of range: 1 to {signal.NSIG - 1}")
    name = name.removeprefix("SIG")
    base, plus, offset = name.partition("+")
    try:
        number = signal.Signals[f"SIG{base}"].value
        number += int(offset) if plus else 0
    except (KeyError, ValueError):
        known = [each.name.removeprefix("SIG") for each in signal.Signals]
        raise SpecError(f"signal {text!r} is not known{did_you_mean(name, known)}") from None
    if not 1 <= number < signal.NSIG:
        raise SpecError(f"signal {text!r} is out of range: 1 to {signal.NSIG - 1}")
    return number
