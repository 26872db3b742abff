"""The steps of the kill matrix, numbered in the order of a container's life, and how a cell of it is run and shown.

A new step is one more line in STEPS: its name is that of a fault point (shim/faults.py, daemon/faults.py with `daemon.`
before it, or a gate of matrixbox.RUNC_PROGRAM with `runc.`), and says who stands still there.
"""

import itertools
import time
import traceback
from dataclasses import dataclass, field

from daemon.faults import POINTS
from tests.support.matrixbox import ANSWER_S, DAEMON, KEEPER, RUNC, SHIM, MatrixBox, Strike
from tests.support.matrixlife import Life, finish, lead


def tell(topic: str) -> list[str]:
    """An event's way: nothing of it on disk; in the state file; in the journal, not answered."""
    return [f"tell.{part}.tasks.{topic}" for part in ("begun", "saved", "told")]


def ended(name: str) -> list[str]:
    return [f"exit.{part}.{name}" for part in ("reaped", "drained", "recorded", "saved", "told", "done")]


# The daemon's own steps; those of records alone, of restarts and of upgrades are in test_daemon_faults.py.
DAEMONS = ("create.", "start.", "exec.", "exec_start.", "ingest.", "exit.", "delete.")
# By operation. The order is the order in which a life passes them.
STEPS: dict[str, list[str]] = {
    "birth": ["keeper.claimed", "keeper.published", "keeper.answered", "keeper.handed", "keeper.held", "keeper.pinned"],
    "create": [
        "create.begun", "create.saved", "create.mounted", "create.streams_open", "create.run", "create.adopted",
        "create.pinned", *tell("create"), "runc.create.begun", "runc.create.half", "runc.create.done",
    ],
    "start": ["start.begun", "start.run", *tell("start"), "runc.start.begun", "runc.start.done"],
    "exec": [
        "exec.begun", "exec.written", *tell("exec-added"), "exec_start.begun", "exec_start.run", "exec_start.adopted",
        *tell("exec-started"), "runc.exec.begun", "runc.exec.done", *ended("exec.e1"),
        "exec_delete.begun", "exec_delete.half", "exec_delete.done",
    ],
    "attach": ["attach.begun", "attach.opened", "attach.input", "attach.written"],
    "log": ["log.spliced", "log.spooled", "log.written", "terminal.lifted"],
    "rotation": ["rotate.begun", "rotate.made", "rotate.moved", "rotate.renamed"],
    "pause": ["pause.begun", "pause.run", *tell("paused"), "runc.pause.begun", "runc.pause.done"],
    "resume": ["resume.begun", "resume.run", *tell("resumed"), "runc.resume.begun", "runc.resume.done"],
    "update": ["update.begun", "update.run", "runc.update.begun", "runc.update.done"],
    "upgrade": [
        "upgrade.begun", "upgrade.checked", "upgrade.saved", "upgrade.frozen", "upgrade.executed", "upgrade.restored",
        "upgrade.thawed",
    ],
    "relief": ["relief.begun", "relief.told", "relief.received"],
    "exit": ended("init"),
    "ack": ["ack.begun", "ack.done"],
    "takeover": [
        "keeper.shim_ended", "keeper.succession_begun", "keeper.succession_handed", "takeover.begun", "takeover.waited",
        "takeover.retold", "takeover.settled", "keeper.noted",
    ],
    "daemon": [f"daemon.{point}" for point in POINTS if point.startswith(DAEMONS)],
    "delete": [
        "delete.begun", "delete.run", "delete.released", *tell("delete"), "runc.delete.begun", "runc.delete.half",
        "runc.delete.done", "shutdown.begun", "shutdown.excused", "shutdown.unlinked", "shutdown.answered",
    ],
}  # fmt: skip
# What a life must be like for a step to come.
SCHEMES = {"log.spooled": "json", "log.written": "json", "terminal.lifted": "tty"}
HOOKS = {"runc.create.half": "createRuntime", "runc.delete.half": "poststop"}
# Those of a takeover: the shim was killed once already.
SECOND = ("takeover", "keeper.shim_ended", "keeper.succession", "keeper.noted")
# At these a container has no shim.
NO_SHIM = (
    "keeper.claimed", "keeper.shim_ended", "daemon.create.begin", "daemon.create.row_stored",
    "daemon.create.bundle_made", "daemon.delete.shim_down", "daemon.delete.bundle_removed", "daemon.delete.row_removed",
)  # fmt: skip
# An exec that ends while keeper and shim die together, before anybody could pin it, is reaped by a stranger: its status
# is unknown then, and may never be a guess.
UNPINNED = ("exec_start.run", "exec_start.adopted", "runc.exec.begun", "runc.exec.done")
# A terminal is held by keeper and shim: it hangs up when both are dead, and what is written to it then is lost.
HANGING_UP = ("terminal.lifted",)
SINGLE = ((DAEMON,), (KEEPER,), (SHIM,), (RUNC,))
PAIRS = ((DAEMON, KEEPER), (DAEMON, SHIM), (KEEPER, SHIM), (DAEMON, RUNC), (KEEPER, RUNC), (SHIM, RUNC))


@dataclass
class Cell:
    """One step, those who are killed there, and what came of it."""

    step: str
    victims: tuple[str, ...]
    took_s: float = 0.0
    answer_s: float = 0.0
    failure: str = ""
    is_bound: bool = False
    logs: str = ""
    errors: list[str] = field(default_factory=list)

    @property
    def relieves(self) -> bool:
        """Whether it is about a shim that is relieved."""
        return self.step.startswith("relief.")

    @property
    def name(self) -> str:
        return f"{'+'.join(self.victims)} at {self.step}"


def cells_of(operation: str) -> list[Cell]:
    """Every cell that can be: runc is a victim only where it stands still."""
    return [
        Cell(step, victims)
        for step in STEPS[operation]
        for victims in (*SINGLE, *PAIRS)
        if RUNC not in victims or step.startswith("runc.")
        if SHIM not in victims or step not in NO_SHIM
    ]


# What `make test` runs: each operation, each victim, each kind of trap.
SHORT = [
    Cell(step, victims)
    for victims, steps in {
        (SHIM,): (
            "create.mounted", "create.adopted", "tell.saved.tasks.create", "start.run", "tell.begun.tasks.start",
            "exec.written", "exec_start.run", "exit.reaped.exec.e1", "exec_delete.half", "log.spliced", "rotate.moved",
            "terminal.lifted", "pause.run", "resume.run", "update.begun", "upgrade.frozen", "upgrade.executed",
            "relief.received", "exit.recorded.init", "ack.begun", "delete.run", "shutdown.unlinked", "takeover.waited",
        ),
        (DAEMON, SHIM): ("create.run", "exit.saved.init", "delete.released", "daemon.create.task_created"),
        (KEEPER, SHIM): ("create.pinned", "exit.reaped.init", "log.written"),
        (KEEPER,): ("relief.told", "create.saved", "exit.drained.init", "keeper.answered"),
        (DAEMON,): ("exec_start.adopted",),
        (RUNC,): ("runc.create.half", "runc.exec.done"),
        (SHIM, RUNC): ("runc.pause.done", "runc.delete.begun"),
    }.items()
    for step in steps
]  # fmt: skip


def table(cells: list[Cell]) -> str:
    """Markdown: a row for each step, a column for each set of victims; the time of the whole life in seconds."""
    columns = [victims for victims in (*SINGLE, *PAIRS) if any(cell.victims == victims for cell in cells)]
    found = {(cell.step, cell.victims): cell for cell in cells}
    lines = [f"| step | {' | '.join('+'.join(victims) for victims in columns)} |", f"|---|{'---|' * len(columns)}"]
    for number, step in enumerate(dict.fromkeys(cell.step for cell in cells), 1):
        shown = [show(found.get((step, victims))) for victims in columns]
        lines.append(f"| {number} {step} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def show(cell: Cell | None) -> str:
    if cell is None:
        return ""
    word = "**fail**" if cell.failure else "ok*" if cell.is_bound else "ok"
    return f"{word} {cell.took_s:.1f}"


numbers = itertools.count()


def run_cell(box: MatrixBox, cell: Cell, scale: float) -> None:
    """Lead a life to the step, strike, and see that nothing is missing; `failure` says what was."""
    life = Life(box, f"cell{next(numbers)}x", cell.victims, scheme=SCHEMES.get(cell.step, "raw"))
    life.types_input = cell.step.startswith("attach.")
    life.upgrades = cell.step.startswith(("upgrade.", "relief."))
    life.may_lose_output = cell.step in HANGING_UP and {KEEPER, SHIM} <= {*cell.victims}
    life.loses_shim = cell.step.startswith(SECOND)
    if life.loses_shim and SHIM not in cell.victims:
        life.victims = (*cell.victims, SHIM)
    life.waits_for_strike = cell.relieves or cell.step.startswith(
        ("log.", "terminal.", "rotate.", "takeover.", "keeper.s")
    )
    life.may_miss_exec = cell.step in UNPINNED and {KEEPER, SHIM} <= {*cell.victims}
    cell.is_bound = life.may_miss_exec or life.may_lose_output
    if cell.step in HOOKS:
        gate = cell.step.removeprefix("runc.")
        life.hooks = {HOOKS[cell.step]: [{"path": box.program, "args": ["runc", "hook", gate]}]}
    if KEEPER in cell.victims:
        box.ensure_keeper()
    if (life.waits_for_strike or life.loses_shim) and not cell.relieves:
        life.late_trap = cell.step
    else:
        box.lay(cell.step)
    life.strike = strike = Strike(box, life.id, cell.victims)
    began = time.monotonic()
    strike.start()
    try:
        lead(life)
        assert strike.has_struck.wait(20.0), "the step was never reached"
        if strike.failure is not None:
            raise strike.failure
        finish(life)
        assert strike.answer_s <= ANSWER_S * scale, f"the API answered after {strike.answer_s:.1f} s"
    except Exception as error:  # noqa: BLE001 - shown in the table
        cell.failure = f"{type(error).__name__}: {error}"[:1500]
        cell.logs = f"{''.join(traceback.format_exception(error))}\n{box.logs_of(life.id)}"
    finally:
        strike.is_cancelled = True
        box.clear_traps()
        strike.join(30.0)
        box.disconnect()
    cell.took_s, cell.answer_s, cell.errors = time.monotonic() - began, strike.answer_s, life.errors


def calm_life(box: MatrixBox, number: int) -> float:
    """How long a life takes in which nobody dies. Raises: AssertionError."""
    began = time.monotonic()
    life = Life(box, f"calm{number}x", ())
    lead(life)
    finish(life)
    return time.monotonic() - began
