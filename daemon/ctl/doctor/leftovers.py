"""What the dead have left outside of bundles: sockets, pins, cgroups. And who may reach what lives."""

import os
import stat
from collections.abc import Iterator
from functools import partial

from daemon.ctl.doctor import repairs
from daemon.ctl.doctor.facts import Facts, keeper_dir
from daemon.ctl.doctor.finding import Finding, Repair, error, note, warning
from daemon.version import VERSION

PIN_PREFIX = 16  # a pin is called after the first digits of its shim's socket


def stale_sockets(facts: Facts) -> Iterator[Finding]:
    """Shims' sockets that nobody listens on and no bundle names: a shim that has a bundle is followed by another."""
    named = {one.socket_path for one in facts.bundles}
    for path in facts.dead_sockets:
        if path not in named:
            yield warning(
                "stale-socket", path, "a socket on which nobody listens, of no bundle",
                "harmless; it is what is left of a shim that was killed",
                f"remove {path}",
                Repair(f"remove {path}", partial(repairs.remove_socket, path)),
            )  # fmt: skip


def stale_keepers(facts: Facts) -> Iterator[Finding]:
    """Keepers' sockets that nobody listens on."""
    for path in facts.dead_keepers:
        yield warning(
            "stale-keeper", path, "a keeper's socket on which nobody listens",
            "that keeper is dead; the next start of a container starts another, which takes the path",
            f"remove {path}, or start a container",
            Repair(f"remove {path}", partial(repairs.remove_keeper_socket, path)),
        )  # fmt: skip


def dead_pins(facts: Facts) -> Iterator[Finding]:
    """Pins of containers that are in no bundle: whoever could want that exit status is gone."""
    wanted = {os.path.basename(one.socket_path)[:PIN_PREFIX] for one in facts.bundles if one.socket_path}
    for path in facts.pins:
        if os.path.basename(path)[:PIN_PREFIX] not in wanted:
            yield warning(
                "dead-pin", path, "it keeps the exit status of a container that nobody asks for any more",
                "a mount and a few hundred bytes of kernel memory",
                f"umount {path}, and remove the file",
                Repair(f"unmount and remove {path}", partial(repairs.remove_pin, path)),
            )  # fmt: skip


def empty_cgroups(facts: Facts) -> Iterator[Finding]:
    """Cgroups of containers that are gone."""
    for path in facts.empty_cgroups:
        yield warning(
            "leaked-cgroup", path, "an empty cgroup of a container that is gone",
            "a little kernel memory; a new container of this name would find its old limits",
            f"rmdir {path}",
            Repair(f"rmdir {path}", partial(repairs.remove_cgroup, path)),
        )  # fmt: skip


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
            yield error(
                "permissions", path, f"mode {mode:04o}, more than {wanted:04o}",
                "users of this host may read what containers are given, or do with them as they like",
                f"chmod {wanted:o} {path}",
                Repair(f"chmod {wanted:o} {path}", partial(repairs.restrict, path, wanted)),
            )  # fmt: skip
        if found.st_uid not in (os.geteuid(), config.socket.uid):
            yield error(
                "permissions", path, f"it belongs to uid {found.st_uid}",
                "that user decides what shimd does", f"find out who made it; then: chown root {path}",
            )  # fmt: skip


def versions(facts: Facts) -> Iterator[Finding]:
    """Daemon and shims of other releases than this shimctl."""
    if facts.daemon is not None and facts.daemon.version != VERSION:
        yield warning(
            "version", "the daemon", f"it is {facts.daemon.version}, shimctl is {VERSION}",
            "they understand each other, but what is new in one is not in the other",
            "restart the daemon: containers run on",
        )  # fmt: skip
    old = [one for one in facts.shim_records if one.version and "containerd-shim" not in one.version]
    old = [one for one in old if one.version.split()[0] != VERSION]
    for one in old:
        yield note(
            "version", f"{one.namespace}/{one.container_id}", f"its shim is {one.version}, shimctl is {VERSION}",
            "it was started by another release, and serves as that one did",
            "nothing: the container's next start brings the new one",
        )  # fmt: skip
    mine = {os.path.basename(path) for path in _own_keepers()}
    for keeper in facts.keepers:
        title = _title(keeper.identity.pid)
        is_ours = os.path.dirname(title) == keeper_dir(facts.config)
        if mine and is_ours and os.path.basename(title) not in mine:
            yield note(
                "version", f"keeper {keeper.identity.pid}", "it is of another installation or release than shimctl",
                "it ends with its last shim; shims started now have another", "nothing",
            )  # fmt: skip


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
