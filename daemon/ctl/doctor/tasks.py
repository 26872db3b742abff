"""Containers, shims and bundles: what goes together and does not. Functions of the facts alone."""

from collections.abc import Iterator
from functools import partial

from daemon.config import Wedged
from daemon.ctl.doctor import repairs
from daemon.ctl.doctor.facts import HANGING, Bundle, Facts
from daemon.ctl.doctor.finding import ERROR, NOTE, WARNING, Finding, Kind, Repair, command, shimctl
from daemon.store.records import LIVE_STATES
from ttrpc.api import shimd, wedge

START = "systemctl start shimd"
LOG = "journalctl -u shimd"
NAMES_MAX = 5

NO_DAEMON = Kind(
    "daemon", WARNING,
    "containers, their output and their exit statuses are safe with their shims; nothing is created or told meanwhile",
    "start it (without systemd: shimd), or see in its log why it ended",
)  # fmt: skip
ORPHAN_WITH_CONTAINER = Kind(
    "orphan-shim", ERROR,
    "nobody is told of its container, restarts or deletes it; it takes memory",
    "look at it; if nobody wants it, end both",
)  # fmt: skip
ORPHAN_SHIM = Kind(
    "orphan-shim", WARNING,
    "it takes memory, and keeps the name of its container",
    "end it: on SIGTERM a shim without a container ends, and one that has a container goes on",
)  # fmt: skip
ORPHAN_CONTAINER = Kind(
    "orphan-container", ERROR,
    "nobody takes its exit status; shimd leaves it alone, for it may be somebody's",
    "if nobody wants it, end it; after that --fix removes its bundle",
)  # fmt: skip
ORPHAN_BUNDLE = Kind(
    "orphan-bundle", WARNING,
    "its name cannot be used again, and it takes room below the state directory",
    "have --fix unmount what is below it and remove it",
)  # fmt: skip
CUT_REMOVAL = Kind(
    "cut-removal", WARNING,
    "it takes room, and may hold a mount; the daemon goes on with the removal at its next start",
    "have --fix do it now, or restart the daemon: containers run on",
)  # fmt: skip
LEAKED_MOUNT = Kind(
    "leaked-mount", WARNING,
    "what is mounted there cannot be unmounted elsewhere or removed",
    "unmount it",
)  # fmt: skip
ENDED = Kind(
    "ended", NOTE,
    "its exit status is on disk or with the kernel, and is recorded when the daemon is back",
    "start the daemon",
)  # fmt: skip
WATCHED = Kind(
    "watched", ERROR,
    "its output fills the FIFO and then waits; stop and kill work, exec and attach do not",
    "see in the daemon's log why no successor could be raised; a container that is not worth it can be ended",
)  # fmt: skip
UNWATCHED = Kind(
    "watched", ERROR,
    "its output fills the FIFO and then waits; a keeper or the daemon raises a successor, and neither is there",
    "start the daemon",
)  # fmt: skip
LOST_BUNDLE = Kind(
    "lost-bundle", ERROR,
    "somebody removed it: its shim cannot write what happens, and has no successor",
    "end the container, and create it anew",
)  # fmt: skip
NO_KEEPER = Kind(
    "no-keeper", NOTE,
    "if such a shim is killed, only the daemon raises a successor; a terminal or an attached stdin closes then, and "
    "how an exec ended may be unknown",
    "nothing if that is meant (SHIMD_KEEPER=off, keeper.enabled = false); else such a shim looks for a keeper by "
    "itself every few minutes, and says in its log why it has none",
)  # fmt: skip
WEDGED = Kind(
    "wedged-shim", ERROR,
    "the container runs on; its shim answers nobody, and its log may stand still",
    "wait: the daemon, or a keeper without one, replaces it under its container (wedged.grace_s); see where it hangs",
)  # fmt: skip
STOPPED = Kind(
    WEDGED.check, ERROR, WEDGED.means,
    "let it go on, and find out who stops it; the daemon, or a keeper without one, does so too (wedged.after_s)",
)  # fmt: skip
UNREACHABLE = Kind(
    "unreachable-shim", ERROR,
    "the container runs on; the daemon answers for it from its records, and tries again and again",
    "see where its shim is, and what it says in its log",
)  # fmt: skip
STOPPED_KEEPER = Kind(
    "stopped-keeper", ERROR,
    "starts fall back to shims of their own, and no successor is raised for one of its shims that dies",
    "let it go on; one in state D waits for the kernel: see the kernel's log, and the disk",
)  # fmt: skip


def daemon_is_there(facts: Facts) -> Iterator[Finding]:
    """Whether somebody arranges and records here."""
    if not facts.is_daemon_up:
        yield NO_DAEMON.of(facts.config.socket_path, facts.daemon_trouble or "the daemon does not run", START, LOG)


def orphan_shims(facts: Facts) -> Iterator[Finding]:
    """Shims of containers of which there is no record."""
    if facts.store is None:
        return
    by_path = {one.path: one for one in facts.bundles}
    for shim in facts.shims:
        key = facts.key_below_bundles(shim.cwd)
        if key is None or key in facts.store.tasks:
            continue
        found = by_path.get(shim.cwd)
        subject, pid = f"{'/'.join(key)} (pid {shim.identity.pid})", shim.identity.pid
        if shim.has_children or (found is not None and found.has_container):
            yield ORPHAN_WITH_CONTAINER.of(
                subject,
                "a shim whose container runs and is not on record",
                shimctl(key[0], "shim", "state", key[1]),
                shimctl(key[0], "shim", "delete", "-f", key[1]),
            )
        else:
            end = Repair(
                f"SIGTERM to the shim of {'/'.join(key)} (pid {pid})",
                repairs.if_off_record(facts, key, partial(repairs.end_shim, shim.identity)),
            )
            yield ORPHAN_SHIM.of(
                subject, "a shim without a container, of which there is no record", f"kill {pid}", repair=end
            )


def orphan_bundles(facts: Facts) -> Iterator[Finding]:
    """Bundles of which there is no record. One with a living shim is told by its shim."""
    if facts.store is None:
        return
    for one in facts.bundles:
        if one.key in facts.store.tasks or one.has_shim:
            continue
        if one.has_container:
            yield ORPHAN_CONTAINER.of(
                one.name,
                f"a container runs (pid {_pid(one)}) without a record and without a shim",
                command("runc", "--root", one.runtime_root, "delete", "--force", one.key[1]),
            )
        else:
            remove = Repair(
                f"unmount what is below {one.path}, and remove it",
                repairs.if_off_record(facts, one.key, partial(repairs.remove_bundle, one)),
            )
            yield ORPHAN_BUNDLE.of(one.name, "a bundle without a record, a shim or a container", repair=remove)


def cut_removals(facts: Facts) -> Iterator[Finding]:
    """What a removal has left that was cut by a kill."""
    for path in facts.cut_removals:
        remove = Repair(f"unmount what is below {path}, and remove it", partial(repairs.remove_rest, path))
        yield CUT_REMOVAL.of(path, "the rest of a bundle whose removal was cut", repair=remove)


def leaked_mounts(facts: Facts) -> Iterator[Finding]:
    """Mounts below the bundles' directory that belong to nothing that lives or is on record.

    Those in a bundle, or the rest of one, go with it: orphan_bundles and cut_removals tell of these.
    """
    if facts.store is None:
        return
    told = {one.key for one in facts.bundles} | {facts.key_below_bundles(path) for path in facts.cut_removals}
    for point in facts.mounts:
        key = facts.key_below_bundles(point)
        if key is None or key in facts.store.tasks or key in told:
            continue
        yield LEAKED_MOUNT.of(
            point,
            "a mount below the bundles, of no container",
            command("umount", "-l", point),
            repair=Repair(f"detach {point}", repairs.if_off_record(facts, key, partial(repairs.unmount, point))),
        )


def lost_shims(facts: Facts) -> Iterator[Finding]:
    """Containers on record whose shim is gone."""
    if facts.store is None:
        return
    for one in facts.bundles:
        row = facts.store.tasks.get(one.key)
        if row is None or one.has_shim or row.state not in LIVE_STATES or row.boot_id != facts.boot_id:
            continue
        runs = f"the container runs (pid {_pid(one)}), its shim is gone"
        if not one.has_container:
            yield ENDED.of(one.name, "it ended while nobody was there to record it", START)
        elif facts.is_daemon_up:
            yield WATCHED.of(one.name, runs, LOG, shimctl(one.key[0], "rm", "-f", one.key[1]))
        else:
            yield UNWATCHED.of(one.name, runs, START)


def lost_bundles(facts: Facts) -> Iterator[Finding]:
    """Tasks on record that live, and whose bundle is gone."""
    there = {one.key for one in facts.bundles}
    for key, row in sorted((facts.store.tasks if facts.store is not None else {}).items()):
        if row.state in LIVE_STATES and row.boot_id == facts.boot_id and key not in there:
            yield LOST_BUNDLE.of(
                "/".join(key),
                f"it is {row.state} on record, and {row.bundle} is not there",
                shimctl(key[0], "rm", "-f", key[1]),
            )


def unprotected(facts: Facts) -> Iterator[Finding]:
    """Containers whose shim no keeper looks after: none has forked it, and none has adopted it."""
    keepers = {one.identity.pid for one in facts.keepers}
    adopted = frozenset().union(*(one.watches for one in facts.keepers))
    alone = [one for one in facts.shims if one.parent not in keepers and one.identity.pid not in adopted]
    if alone:
        names = ["/".join(facts.key_below_bundles(one.cwd) or (one.comm,)) for one in alone[:NAMES_MAX]]
        names += ["…"] if len(alone) > NAMES_MAX else []
        yield NO_KEEPER.of(
            ", ".join(names),
            f"no keeper looks after {len(alone)} of {len(facts.shims)} shims",
            command("grep", "keeper", f"{alone[0].cwd}/shim.log"),
        )


def wedged_shims(facts: Facts) -> Iterator[Finding]:
    """Shims that live and do not move, and those the daemon cannot reach for another reason."""
    records = {record.pid: record for record in facts.shim_records}
    for one in facts.bundles:
        if one.shim is None or not one.has_shim:
            continue
        subject, pid = f"{one.name} (pid {one.shim.pid})", one.shim.pid
        record, looks = records.get(pid), facts.looks.get(pid)
        told = record.trouble if record is not None else ""
        trouble = told or _trouble(looks, facts.config.wedged.after_s or Wedged().after_s)
        log, where = command("tail", f"{one.path}/shim.log"), shimctl(one.key[0], "shim", "stack", one.key[1])
        if trouble:
            if looks is not None and wedge.spell_of(looks[1]) == wedge.STOPPED:
                go_on = Repair(f"SIGCONT to the shim of {one.name} (pid {pid})", partial(repairs.go_on, one.shim))
                yield STOPPED.of(subject, trouble, f"kill -CONT {pid}", repair=go_on)
            else:
                stack = f"\n{record.stack}" if record is not None and record.stack else ""
                yield WEDGED.of(subject, trouble + stack, where, log)
        elif record is not None and record.health == shimd.HEALTH_UNREACHABLE:
            yield UNREACHABLE.of(subject, record.reason or "the daemon cannot reach it", where, log)


def stopped_keepers(facts: Facts) -> Iterator[Finding]:
    """Keepers that do not move: their processes are there, so nobody starts another."""
    for keeper in facts.keepers:
        if keeper.state not in HANGING:
            continue
        pid, is_stopped = keeper.identity.pid, keeper.state == "T"
        go_on = Repair(f"SIGCONT to keeper {pid}", partial(repairs.go_on, keeper.identity))
        yield STOPPED_KEEPER.of(
            f"keeper {pid}",
            f"it does not move (state {keeper.state})",
            f"kill -CONT {pid}" if is_stopped else f"cat /proc/{pid}/stack",
            repair=go_on if is_stopped else None,
        )


def _trouble(looks: "object", after_s: float) -> str:
    """What two looks show that has lasted: nothing for a shim that moved in between."""
    if not isinstance(looks, tuple):
        return ""
    first, second = looks
    spell = wedge.spell_of(second)
    if spell != wedge.spell_of(first) or first.turns != second.turns:
        return ""
    if spell in (wedge.STOPPED, wedge.TRACED, wedge.FROZEN, wedge.KERNEL):
        return f"it is {spell} (state {second.state})"
    busy_s = (second.at_ns - (second.busy_since_ns or second.at_ns)) / 1e9
    return f"one turn of its loop has not ended for {busy_s:.1f} s (state {second.state})" if busy_s > after_s else ""


def _pid(one: Bundle) -> int:
    return one.init.pid if one.init is not None else 0


CHECKS = (
    daemon_is_there,
    wedged_shims,
    stopped_keepers,
    lost_shims,
    lost_bundles,
    orphan_shims,
    leaked_mounts,
    orphan_bundles,
    cut_removals,
    unprotected,
)
