"""Every fault point is a step of the kill matrix, every step a fault point: a misspelt one would never be hit."""

import ast

from daemon.faults import POINTS
from tests.support.matrixsteps import SHORT, STEPS
from tests.support.source import modules

# Points that take their end from whose turn it is: a topic, a process.
OPEN = ("tell.", "exit.")


def points() -> list[str]:
    """The names that shim/ passes to faults.point."""
    found = []
    for module in modules("shim"):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.point":
                assert isinstance(node.args[0], ast.Constant), f"{module.path}:{node.lineno}: its name is a literal"
                found.append(str(node.args[0].value))
    return found


def test_every_fault_point_of_the_shim_is_a_step_of_the_matrix_and_the_reverse() -> None:
    steps = {step for group in STEPS.values() for step in group}
    in_source = set(points())
    unreached = {name for name in in_source if name not in steps and not name.startswith(OPEN)}
    open_names = {name.rstrip(".") for name in in_source if name.startswith(OPEN)}
    unknown = {
        step
        for step in steps - in_source
        if not step.startswith(("runc.", "daemon.")) and ".".join(step.split(".")[:2]) not in open_names
    }

    assert unreached == set()
    assert unknown == set()
    assert {step.removeprefix("daemon.") for step in steps if step.startswith("daemon.")} <= set(POINTS)


def test_what_runs_in_short_is_of_the_whole() -> None:
    assert {cell.step for cell in SHORT} <= {step for group in STEPS.values() for step in group}


def test_a_fault_point_is_named_once() -> None:
    found = [name for name in points() if not name.startswith(OPEN)]

    assert sorted(found) == sorted(set(found))
