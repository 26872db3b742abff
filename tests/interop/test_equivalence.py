"""Each scenario under real containerd and `ctr`, once on the Go shim and once on ours: the notes are the same."""

import importlib
import pkgutil
import re
from collections.abc import Callable

import pytest

import tests.interop.scenarios
from tests.interop.accepted import ACCEPTED
from tests.interop.compare import Notes, differences
from tests.interop.conftest import GO, OURS
from tests.interop.scenario import ALL, Scenario

for module in pkgutil.iter_modules(tests.interop.scenarios.__path__):
    importlib.import_module(f"tests.interop.scenarios.{module.name}")


def entered() -> list[object]:
    marks = {True: (), False: (pytest.mark.long,)}
    return [pytest.param(found, id=name, marks=marks[found.is_short]) for name, found in ALL.items()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scenario", entered())
def test_same_on_both_shims(
    scenario: Scenario, perform: Callable[[Scenario, str], Notes], record_property: Callable[[str, object], None]
) -> None:
    """What containerd's clients see of our shim is what they see of the Go shim, or better where the table says so."""
    go = perform(scenario, GO)
    ours = perform(scenario, OURS)

    found, met = differences(scenario.name, go, ours, ACCEPTED)
    record_property("compared", len(go))
    record_property("accepted", [f"{entry.label}: {entry.why}" for entry in ACCEPTED if entry in met])

    assert not found, f"{scenario.subject}\n" + "\n".join(found)
    if GO != OURS:
        owed = [entry for entry in ACCEPTED if entry.always and re.fullmatch(entry.scenario, scenario.name)]
        stale = [entry for entry in owed if entry not in met]
        assert not stale, f"accepted differences that are not there any more: {stale}"
