"""The kill matrix: whoever is SIGKILLed at whatever step, nothing is lost. `make matrix` runs all of it.

Each cell is a container's whole life with one strike: see tests/support/matrixsteps.py.
"""

import os
import sys

import pytest

from tests.support.matrixbox import MatrixBox
from tests.support.matrixsteps import SHORT, STEPS, Cell, calm_life, cells_of, run_cell, table
from tests.support.source import ROOT

IS_WHOLE = os.environ.get("SHIMD_MATRIX") == "whole"
# Of the whole: those cells alone whose name, such as "daemon+shim at create.run", has this in it.
ONLY = os.environ.get("SHIMD_MATRIX_ONLY", "")
# A life in which nobody dies takes so long on the machine that the promise of 2 s is made for.
CALM_S = 1.0
PAGE = os.path.join(ROOT, "tests", "system", "MATRIX.md")
HEAD = """# The kill matrix

Written by `make matrix`. A row is a step at which a process stands still; a column says who is then killed by SIGKILL.
`ok`: the container lived on with the same pid (or its create was undone and asked for again), its output is complete to
the byte, both exit statuses are exact and stored once, every event was told once and in order, the API answered within
2 s, and nothing is left. The number is the whole life in seconds. `ok*`: the same, within a bound that SHIM.md states:
a terminal hangs up when keeper and shim die together; an exec that ends as they do, before it is pinned, is *unknown*.

`takeover.*` and the keeper's steps from `keeper.shim_ended` on are reached by a first SIGKILL, of the shim; the column
says who gets the second. An empty cell: there is nobody of that kind at that step. The daemon's other steps (records,
restarts, upgrades) are in `tests/system/test_daemon_faults.py`, the daemon alone being killed there.

"""

done: list[Cell] = []


def has_failed(box: MatrixBox, cell: Cell, scale: float) -> bool:
    """Run one, and say how it went."""
    run_cell(box, cell, scale)
    word = "FAIL" if cell.failure else "ok"
    sys.stderr.write(f"{word:4} {cell.took_s:5.2f} s {cell.name} {cell.failure} {cell.errors}\n{cell.logs}\n")
    return bool(cell.failure)


def run(cells: list[Cell]) -> list[str]:
    """Run them all; what fails, in words. A line for each on stderr. After one that failed the box is another, and for
    those in which shims are relieved.
    """
    waiting = iter(sorted(cells, key=lambda cell: cell.relieves))
    cell = next(waiting, None)
    while cell is not None:
        with MatrixBox(relieves=cell.relieves) as box:
            scale = max(1.0, calm_life(box, 0) / CALM_S)
            is_ok = True
            while cell is not None and cell.relieves == box.relieves and is_ok:
                is_ok = not has_failed(box, cell, scale)
                cell = next(waiting, None)
    return [f"{cell.name}: {cell.failure}" for cell in cells if cell.failure]


@pytest.mark.skipif(IS_WHOLE, reason="the whole has it")
@pytest.mark.timeout(300)
def test_whoever_is_killed_nothing_is_lost_in_short() -> None:
    assert run(SHORT) == []


@pytest.mark.skipif(not IS_WHOLE, reason="ten minutes: make matrix")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("operation", STEPS)
def test_whoever_is_killed_nothing_is_lost(operation: str) -> None:
    cells = [cell for cell in cells_of(operation) if ONLY in cell.name]
    done.extend(cells)
    assert run(cells) == []


@pytest.mark.skipif(not IS_WHOLE or bool(ONLY), reason="of the whole only")
def test_the_page_is_written() -> None:
    """The table for the README."""
    failed = sum(bool(cell.failure) for cell in done)
    text = f"{HEAD}{len(done)} cells, {failed} failed.\n\n{table(done)}"
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(text)
    sys.stderr.write(text)
    assert {cell.step for cell in done} == {step for steps in STEPS.values() for step in steps}
