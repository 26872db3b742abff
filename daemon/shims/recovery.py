"""What to do with a task found after a restart, or with a task whose shim was lost: a table over facts. Pure.

Nothing is concluded from silence. A shim is gone only when its process is (by pid, start time and boot); a container is
dead only when its init process is, when a record says so, or when this is another boot. What cannot be known yet is
kept and asked again.
"""

import dataclasses
import enum

from daemon.store.records import CREATED, CREATING, DELETING, PAUSED, RESTARTING, RUNNING, STOPPED


class Shim(enum.Enum):
    """What is known of the shim's process."""

    SERVING = "serving"  # it answered
    SILENT = "silent"  # it did not answer in time, or cannot be reached; its process may be there
    GONE = "gone"  # its process is not there


class Task(enum.Enum):
    """What a serving shim said of its container."""

    NONE = "none"  # it knows no such container
    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"  # or paused
    STOPPED = "stopped"


class Init(enum.Enum):
    """What is known of the container's init process without its shim."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"  # no pid was ever recorded


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """Evidence about one bundle or task row. `exit_known`: in the store, or as a record in the bundle."""

    row: str | None  # the row's state; None: a bundle without a row
    is_this_boot: bool = True
    has_bundle: bool = True
    shim: Shim = Shim.GONE
    task: Task | None = None  # with a serving shim
    init: Init = Init.UNKNOWN  # without one
    exit_known: bool = False
    can_raise: bool = False  # the bundle holds what a successor needs; of a shim that is gone
    is_coming_back: bool = False  # that shim was about to restart the container by policy


class Verdict(enum.Enum):
    """What is to be done."""

    ADOPT = "adopt"  # connect, follow, serve
    RETRY = "retry"  # list as unreachable, ask again later
    RAISE = "raise"  # start a shim that takes the container over
    WATCH = "watch"  # the container lives without a shim: keep the record, wait for its end
    RECORD_EXIT = "record exit"  # it is over, and how is on record
    RECORD_UNKNOWN = "record unknown exit"  # it is over, and nobody can say how
    REAP = "reap"  # finish the delete that was under way
    DISCARD = "discard"  # never born: clear what there is and forget it
    LEAVE = "leave"  # not ours to touch: tell the operator


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """`state` is the row's new state, where it changes. `is_cleared`: shim and bundle go, the row stays."""

    verdict: Verdict
    reason: str
    state: str | None = None
    is_cleared: bool = False


def decide(facts: Facts) -> Decision:
    """The one place where a task's fate after a loss is decided."""
    if facts.row is None:
        return _without_row(facts)
    if not facts.is_this_boot:
        return _after_reboot(facts)
    if facts.shim is Shim.SERVING:
        return _serving(facts)
    if facts.shim is Shim.SILENT:
        return Decision(Verdict.RETRY, "the shim does not answer; that says nothing about its container")
    return _shim_gone(facts)


def _without_row(facts: Facts) -> Decision:
    """Rows are written before bundles and removed after them: so this is a lost store, or somebody else's work."""
    if facts.shim is Shim.SERVING and facts.task is Task.NONE:
        return Decision(Verdict.DISCARD, "a shim without a container, of which there is no record")
    if facts.shim is not Shim.GONE:
        return Decision(Verdict.LEAVE, "there is no record of this container, but its shim may be running")
    if facts.init is Init.ALIVE:
        return Decision(Verdict.LEAVE, "there is no record of this container, but it is running")
    return Decision(Verdict.DISCARD, "left behind by a container that is gone and of which there is no record")


def _after_reboot(facts: Facts) -> Decision:
    """No process of that boot exists; only records can tell how it ended."""
    if facts.row == CREATING:
        return Decision(Verdict.DISCARD, "the machine was restarted while it was being created")
    if facts.row == DELETING:
        return Decision(Verdict.REAP, "the machine was restarted while it was being deleted")
    if facts.row == RESTARTING or facts.exit_known:
        return Decision(
            Verdict.RECORD_EXIT, "ended before the machine was restarted", STOPPED, is_cleared=facts.row == RESTARTING
        )
    return Decision(Verdict.RECORD_UNKNOWN, "ended when the machine was restarted", STOPPED)


def _serving(facts: Facts) -> Decision:
    task = facts.task
    if task is Task.RUNNING:
        # Whatever was under way: a container that runs is never taken down by recovery.
        return Decision(Verdict.ADOPT, "its shim serves it", RUNNING)
    if facts.row == DELETING:
        return Decision(Verdict.REAP, "it was being deleted")
    if facts.row == RESTARTING and task is not Task.STOPPED:
        return Decision(Verdict.RECORD_EXIT, "it was being restarted; its policy tries again", STOPPED, is_cleared=True)
    if facts.row == CREATING and task in (Task.NONE, Task.CREATING):
        return Decision(Verdict.DISCARD, "it was never fully created")
    if task is Task.CREATED:
        return Decision(Verdict.ADOPT, "its shim serves it", CREATED)
    # Stopped, or deleted in the shim already: how it ended is in the shim's journal, which is followed.
    return Decision(Verdict.ADOPT, "its shim tells how it ended", STOPPED)


def _shim_gone(facts: Facts) -> Decision:
    if facts.row == CREATING:
        # Not even a live init makes it more: nobody was told that it exists, and no shim can start it.
        return Decision(Verdict.DISCARD, "it was never fully created, and its shim is gone")
    if facts.can_raise and facts.row == STOPPED and facts.is_coming_back:
        return Decision(Verdict.RAISE, "its shim is gone, which was to restart it; another takes over")
    if facts.can_raise and facts.row in (CREATED, RUNNING, PAUSED, STOPPED):
        # Also of a container that has ended: the kernel may still know how, and the journal what was not told.
        return Decision(Verdict.RAISE, "its shim is gone; another takes over")
    if facts.init is Init.ALIVE and not facts.exit_known:
        if facts.can_raise:
            return Decision(Verdict.RAISE, "its shim is gone, the container runs on; another takes over")
        return Decision(Verdict.WATCH, "its shim is gone, the container runs on")
    if facts.row == DELETING:
        return Decision(Verdict.REAP, "it was being deleted, and its shim is gone")
    if facts.row == RESTARTING:
        return Decision(Verdict.RECORD_EXIT, "it was being restarted; its policy tries again", STOPPED, is_cleared=True)
    if facts.exit_known:
        return Decision(Verdict.RECORD_EXIT, "it ended, and its shim is gone", STOPPED)
    return Decision(Verdict.RECORD_UNKNOWN, "it ended, its shim is gone, and no record says how", STOPPED)
