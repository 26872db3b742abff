"""The kill matrix: whoever is SIGKILLed at whatever step, nothing is lost. `make matrix` runs all of it.

Each cell is a container's whole life with one strike: see tests/support/matrixsteps.py.
"""

import os
import sys

import pytest

from tests.support.matrixbox import MatrixBox
from tests.support.matrixsteps import STEPS, calm_life, cells_of, run_cell

IS_WHOLE = os.environ.get("SHIMD_MATRIX") == "whole"
ONLY = os.environ.get("SHIMD_MATRIX_ONLY", "")
# A life in which nobody dies takes so long on the machine that the promise of 2 s is made for.
CALM_S = 1.0


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("operation", STEPS)
def test_whoever_is_killed_nothing_is_lost(operation: str) -> None:
    cells = [cell for cell in cells_of(operation) if ONLY in cell.name]
    with MatrixBox() as box:
        scale = max(1.0, calm_life(box, 0) / CALM_S)
        for number, cell in enumerate(cells):
            run_cell(box, cell, number, scale)
            word = "FAIL" if cell.failure else "ok"
            sys.stderr.write(f"{word:4} {cell.took_s:5.2f} s {cell.name} {cell.failure} {cell.errors}\n{cell.logs}\n")

    assert [f"{cell.name}: {cell.failure}" for cell in cells if cell.failure] == []
