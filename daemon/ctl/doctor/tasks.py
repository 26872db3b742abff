"""Containers, shims and bundles: what goes together and does not. Functions of the facts alone."""

from collections.abc import Iterator
from functools import partial

from daemon.ctl.doctor import repairs
from daemon.ctl.doctor.facts import Bundle, Facts
from daemon.ctl.doctor.finding import Finding, Repair, error, note, warning
from daemon.store.records import LIVE_STATES
from ttrpc.api import wedge

_START = "start the daemon: systemctl start shimd (or: shimd)"


def daemon_is_there(facts: Facts) -> Iterator[Finding]:
    """Whether somebody arranges and records here."""
    if not facts.is_daemon_up:
        yield warning(
            "daemon", facts.config.socket_path, facts.daemon_trouble or "the daemon does not run",
            "containers, their output and their exit statuses are safe with their shims; "
            "nothing is created, restarted by policy or told meanwhile",
            _START,
        )  # fmt: skip


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
        is_alive = shim.has_children or (found is not None and found.has_container)
        means = "nobody is told of its container, restarts or deletes it; it takes memory"
        subject = f"{'/'.join(key)} (pid {shim.identity.pid})"
        if is_alive:
            yield error(
                "orphan-shim", subject, "a shim whose container runs and is not on record", means,
                f"look: shimctl -n {key[0]} shim state {key[1]}; "
                f"end both: shimctl -n {key[0]} shim delete -f {key[1]}",
            )  # fmt: skip
        else:
            yield warning(
                "orphan-shim", subject, "a shim without a container, of which there is no record", means,
                "end it; a shim that has a container refuses that by itself",
                Repair(f"SIGTERM to pid {shim.identity.pid}", partial(repairs.end_shim, shim.identity)),
            )  # fmt: skip


def orphan_bundles(facts: Facts) -> Iterator[Finding]:
    """Bundles of which there is no record. One with a living shim is told by its shim."""
    if facts.store is None:
        return
    for one in facts.bundles:
        if one.key in facts.store.tasks or one.has_shim:
            continue
        if one.has_container:
            yield error(
                "orphan-container", one.name, "a container runs without a record and without a shim",
                "nobody reads its output or learns its exit status; shimd leaves it alone, for it may be somebody's",
                f"end it: runc --root {one.runtime_root} delete --force {one.key[1]}; "
                "then run shimctl doctor --fix",
            )  # fmt: skip
        else:
            yield warning(
                "orphan-bundle", one.name, "a bundle without a record, a shim or a container",
                "its name cannot be used again, and it takes room below the state directory",
                f"remove {one.path}, with what is mounted in it",
                Repair(f"unmount what is below it and remove {one.path}", partial(repairs.remove_bundle, one)),
            )  # fmt: skip


def cut_removals(facts: Facts) -> Iterator[Finding]:
    """What a removal has left that was cut by a kill."""
    for path in facts.cut_removals:
        yield warning(
            "cut-removal", path, "the rest of a bundle whose removal was cut",
            "it takes room, and may hold a mount; the daemon removes it at its next start",
            f"restart the daemon, or remove {path}",
            Repair(f"unmount what is below it and remove {path}", partial(repairs.remove_rest, path)),
        )  # fmt: skip


def leaked_mounts(facts: Facts) -> Iterator[Finding]:
    """Mounts below the bundles that belong to nothing that lives or is on record."""
    if facts.store is None:
        return
    by_key = {one.key: one for one in facts.bundles}
    for point in facts.mounts:
        key = facts.key_below_bundles(point)
        if key is None or key in facts.store.tasks:
            continue
        one = by_key.get(key)
        if one is not None and (one.has_shim or one.has_container):
            continue
        yield warning(
            "leaked-mount", point, "a mount in a bundle that belongs to no container",
            "what is mounted there cannot be unmounted elsewhere or removed, and the bundle cannot go",
            f"unmount it: umount -l {point}",
            Repair(f"detach {point}", partial(repairs.unmount, point)),
        )  # fmt: skip


def lost_shims(facts: Facts) -> Iterator[Finding]:
    """Containers on record whose shim is gone."""
    if facts.store is None:
        return
    for one in facts.bundles:
        row = facts.store.tasks.get(one.key)
        if row is None or one.has_shim or row.state not in LIVE_STATES or row.boot_id != facts.boot_id:
            continue
        if not one.has_container:
            yield note(
                "ended", one.name, "it ended while nobody was there to record it",
                "its exit status is on disk or with the kernel, and is recorded when the daemon is back",
                _START,
            )  # fmt: skip
        elif facts.is_daemon_up:
            yield error(
                "watched", one.name, f"the container runs (pid {_pid(one)}), its shim is gone",
                "its output fills the FIFO and then waits; stop and kill work, exec and attach do not",
                f"the daemon's log says why no successor could be raised; end it: shimctl -n {one.key[0]} "
                f"rm -f {one.key[1]}",
            )  # fmt: skip
        else:
            yield error(
                "watched", one.name, f"the container runs (pid {_pid(one)}), its shim is gone",
                "its output fills the FIFO and then waits; a successor is raised by the keeper or the daemon, "
                "and neither is there",
                _START,
            )  # fmt: skip


def lost_bundles(facts: Facts) -> Iterator[Finding]:
    """Tasks on record that live, and whose bundle is gone."""
    there = {one.key for one in facts.bundles}
    for key, row in sorted((facts.store.tasks if facts.store is not None else {}).items()):
        if row.state in LIVE_STATES and row.boot_id == facts.boot_id and key not in there:
            yield error(
                "lost-bundle", "/".join(key), f"it is {row.state} on record, and {row.bundle} is not there",
                "its shim cannot write what happens, and has no successor",
                f"somebody removed it; end the container: shimctl -n {key[0]} rm -f {key[1]}",
            )  # fmt: skip


def unprotected(facts: Facts) -> Iterator[Finding]:
    """Containers whose shim no keeper has forked."""
    keepers = {one.identity.pid for one in facts.keepers}
    alone = [one for one in facts.shims if one.parent not in keepers]
    if alone:
        names = [one.comm for one in alone[:5]] + (["…"] if len(alone) > 5 else [])
        yield note(
            "no-keeper", ", ".join(names), f"{len(alone)} of {len(facts.shims)} shims have no keeper above them",
            "if such a shim is killed, only the daemon raises a successor, a terminal or attached stdin closes, and an "
            "exec's exit status may be unknown; it takes more memory, too",
            "a container started now has one, unless SHIMD_KEEPER=off is set; `shim.log` in the bundle says why not",
        )  # fmt: skip


def wedged_shims(facts: Facts) -> Iterator[Finding]:
    """Shims that live and do not move."""
    told = {record.pid: record for record in facts.shim_records if record.trouble}
    for one in facts.bundles:
        if one.shim is None or not one.has_shim:
            continue
        record = told.get(one.shim.pid)
        looks = facts.looks.get(one.shim.pid)
        trouble = record.trouble if record is not None else _trouble(looks, facts.config.wedged.after_s)
        if not trouble:
            continue
        is_stopped = looks is not None and wedge.spell_of(looks[1]) == wedge.STOPPED
        stack = f"\n{record.stack}" if record is not None and record.stack else ""
        yield error(
            "wedged-shim", f"{one.name} (pid {one.shim.pid})", trouble + stack,
            "the container runs on, its shim answers nobody and its log may stand still",
            "the daemon, or the keeper without one, replaces it after a while and leaves the container alone; "
            f"its log has the stack: {one.path}/shim.log",
            Repair(f"SIGCONT to pid {one.shim.pid}", partial(repairs.go_on, one.shim)) if is_stopped else None,
        )  # fmt: skip


def stopped_keepers(facts: Facts) -> Iterator[Finding]:
    """Keepers that do not move: their processes are there, so nobody starts another."""
    for keeper in facts.keepers:
        if keeper.state not in ("T", "t", "D"):
            continue
        pid = keeper.identity.pid
        yield error(
            "stopped-keeper",
            f"keeper {pid}",
            f"it does not move (state {keeper.state})",
            "starts fall back to shims of their own, and no successor is raised for one of its shims that dies",
            f"let it go on: kill -CONT {pid}",
            Repair(f"SIGCONT to pid {pid}", partial(repairs.go_on, keeper.identity)) if keeper.state == "T" else None,
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
