"""What the dead have left outside of bundles: sockets, pins, cgroups. And who may reach what lives."""

import os
import stat
from collections.abc import Iterator
from functools import partial

from daemon.ctl.doctor import repairs
from daemon.ctl.doctor.facts import Facts, keeper_dir, owner_of_pin, pin_owners
from daemon.ctl.doctor.finding import ERROR, NOTE, WARNING, Finding, Kind, Repair, command, shimctl
from daemon.version import VERSION

STALE_SOCKET = Kind(
    "stale-socket", WARNING,
    "harmless; it is what is left of a shim that was killed",
    "remove it",
)  # fmt: skip
STALE_KEEPER = Kind(
    "stale-keeper", WARNING,
    "that keeper is dead; the next start of a container starts another, which takes the path",
    "start a container, or remove it",
)  # fmt: skip
DEAD_PIN = Kind(
    "dead-pin", WARNING,
    "it costs a mount and a few hundred bytes of kernel memory",
    "unmount it, and remove the file",
)  # fmt: skip
LEAKED_CGROUP = Kind(
    "leaked-cgroup", WARNING,
    "it costs a little kernel memory; a new container of this name would find its old limits",
    "remove it",
)  # fmt: skip
TOO_OPEN = Kind(
    "permissions", ERROR,
    "users of this host may read what containers are given, or do with them as they like",
    "take the rights away; what was secret in there may be known to others by now",
)  # fmt: skip
FOREIGN_OWNER = Kind(
    "permissions", ERROR,
    "that user decides what shimd does",
    "find out who made it, then make it root's",
)  # fmt: skip
OTHER_DAEMON = Kind(
    "version", WARNING,
    "they understand each other, but what is new in one is not in the other",
    "have the installed one take the daemon's place, without a refused call, or restart it: containers run on",
)  # fmt: skip
OTHER_SHIM = Kind(
    "version", NOTE,
    "it was started by another release, and serves as that one did",
    "nothing needs it; it can go on as the installed code, under its running container",
)  # fmt: skip
OTHER_KEEPER = Kind(
    "version", NOTE,
    "it ends with its last shim; shims started now have another",
    "nothing",
)  # fmt: skip


def stale_sockets(facts: Facts) -> Iterator[Finding]:
    """Shims' sockets that nobody listens on and no bundle names: a shim that has a bundle is followed by another."""
    named = {one.socket_path for one in facts.bundles}
    for path in facts.dead_sockets:
        if path not in named:
            remove = Repair(f"remove {path}", partial(repairs.remove_socket, path))
            yield STALE_SOCKET.of(
                path, "a socket on which nobody listens, of no bundle", command("rm", path), repair=remove
            )


def stale_keepers(facts: Facts) -> Iterator[Finding]:
    """Keepers' sockets that nobody listens on."""
    for path in facts.dead_keepers:
        remove = Repair(f"remove {path}", partial(repairs.remove_keeper_socket, path))
        yield STALE_KEEPER.of(path, "a keeper's socket on which nobody listens", command("rm", path), repair=remove)


def dead_pins(facts: Facts) -> Iterator[Finding]:
    """Pins of containers that are in no bundle: whoever could want that exit status is gone."""
    wanted = pin_owners(one.socket_path for one in facts.bundles)
    for path in facts.pins:
        if owner_of_pin(path) not in wanted:
            remove = partial(repairs.remove_pin, path, facts.config.bundles_dir)
            yield DEAD_PIN.of(
                path,
                "it keeps the exit status of a container that nobody asks for any more",
                command("umount", path),
                command("rm", path),
                repair=Repair(f"unmount and remove {path}", remove),
            )


def empty_cgroups(facts: Facts) -> Iterator[Finding]:
    """Cgroups of containers that are gone: one finding for each container, in however many hierarchies it was."""
    for key, paths in facts.empty_cgroups.items():
        name, count = "/".join(key), len(paths)
        remove = repairs.if_off_record(facts, key, partial(repairs.remove_cgroups, paths))
        yield LEAKED_CGROUP.of(
            name,
            f"an empty cgroup of a container that is gone{f', in {count} hierarchies' if count > 1 else ''}",
            command("rmdir", *paths),
            repair=Repair(f"remove the cgroup of {name}", remove),
        )


def permissions(facts: Facts) -> Iterator[Finding]:
    """Whether others get at what is ours alone: specs hold secrets, and a socket is as good as root."""
    config = facts.config
    directories = [(config.state_dir, 0o700), (config.shim_socket_dir, 0o700)]
    files = [(config.database_path, 0o600), (config.socket_path, config.socket.mode)]
    files += [(one.socket_path, 0o600) for one in facts.bundles if one.socket_path and not one.is_foreign]
    files += [(f"{one.path}/config.json", 0o600) for one in facts.bundles]
    for path, wanted in (*directories, *files):
        try:
            found = os.lstat(path)
        except OSError:
            continue
        mode = stat.S_IMODE(found.st_mode)
        if mode & ~wanted & 0o077:
            yield TOO_OPEN.of(
                path,
                f"mode {mode:04o}, more than {wanted:04o}",
                command("chmod", f"{mode & wanted:o}", path),
                repair=Repair(f"chmod {mode & wanted:o} {path}", partial(repairs.restrict, path, wanted)),
            )
        if found.st_uid not in (os.geteuid(), config.socket.uid):
            yield FOREIGN_OWNER.of(
                path, f"it belongs to uid {found.st_uid}", command("ls", "-ld", path), command("chown", "root", path)
            )


def versions(facts: Facts) -> Iterator[Finding]:
    """Daemon and shims of other releases than this shimctl."""
    if facts.daemon is not None and facts.daemon.version != VERSION:
        yield OTHER_DAEMON.of(
            "the daemon", f"it is {facts.daemon.version}, shimctl is {VERSION}", "shimctl daemon upgrade"
        )
    old = [one for one in facts.shim_records if one.version and "containerd-shim" not in one.version]
    old = [one for one in old if one.version.split()[0] != VERSION]
    for one in old:
        yield OTHER_SHIM.of(
            f"{one.namespace}/{one.container_id}",
            f"its shim is {one.version}, shimctl is {VERSION}",
            shimctl(one.namespace, "shim", "upgrade", one.container_id),
        )
    mine = {os.path.basename(path) for path in _own_keepers()}
    for keeper in facts.keepers:
        title = _title(keeper.identity.pid)
        is_ours = os.path.dirname(title) == keeper_dir(facts.config)
        if mine and is_ours and os.path.basename(title) not in mine:
            pid = keeper.identity.pid
            yield OTHER_KEEPER.of(f"keeper {pid}", "it is of another installation or release than shimctl")


def _own_keepers() -> list[str]:
    """What the keeper of our own installation is called: see shim/SHIM.md."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    try:
        found = os.stat(os.path.join(root, "shim"))
    except OSError:
        return []
    return [f"{found.st_dev:x}-{found.st_ino:x}"]


def _title(pid: int) -> str:
    """The path a keeper serves at, which its title ends with."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().replace(b"\0", b" ").split()
    except OSError:
        return ""
    return os.fsdecode(words[1]) if len(words) > 1 else ""


CHECKS = (stale_sockets, stale_keepers, dead_pins, empty_cgroups, permissions, versions)
