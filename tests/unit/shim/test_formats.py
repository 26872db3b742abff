"""State written by other releases: what this one reads of it, and what it refuses before anything is touched.

states/vN is a shim's directory as a release of state format N wrote it; each new format adds one, and none is changed.
"""

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from shim import resume
from shim.bundle import STATE_VERSION
from shim.serving import journal
from shim.upgrade import handover
from tests.support import leaks

STATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "states")
FOUND = "container running, 2 execs, 10 records in the journal"


@pytest.fixture
def bundle(tmp_path: Any) -> str:
    path = str(tmp_path / "bundle")
    shutil.copytree(os.path.join(STATES, "v1"), path)
    return path


def carried(bundle: str, **more: Any) -> dict[str, Any]:
    params = {"namespace": "test", "id": "box", "bundle": bundle, "environment": {}}
    return {"from_version": "0.0.9", "params": params, "has_task": True, **more}


def look(facts: dict[str, Any]) -> str:
    """By way of the memory file, as the dry run gets it."""
    fd = handover.write(facts)
    try:
        return resume.look(handover.read(fd))
    finally:
        os.close(fd)


def change(path: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(leaks.read(path))
    edit(value)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)


def contents(folder: str) -> dict[str, bytes]:
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                found[os.path.join(root, name)] = file.read()
    return found


def test_the_newest_recorded_state_is_of_our_version() -> None:
    assert max(os.listdir(STATES)) == f"v{STATE_VERSION}"


def test_a_recorded_state_is_read_and_not_changed(bundle: str) -> None:
    before = contents(bundle)
    assert look(carried(bundle)) == FOUND
    assert contents(bundle) == before


def test_fields_of_a_newer_release_are_ignored(bundle: str) -> None:
    for name in ("state.json", "execs/e1.state.json"):
        change(os.path.join(bundle, name), lambda value: value.update(from_the_future={"a": [1]}))
    change(os.path.join(bundle, "state.json"), lambda value: value["init"].update(from_the_future=1))
    facts = carried(bundle, from_the_future=1)
    facts["params"]["from_the_future"] = "x"
    assert look(facts) == FOUND


@pytest.mark.parametrize("version", [STATE_VERSION - 1, STATE_VERSION + 1, None])
def test_another_state_version_is_refused(bundle: str, version: int | None) -> None:
    change(os.path.join(bundle, "state.json"), lambda value: value.update(version=version))
    before = contents(bundle)
    with pytest.raises(ValueError, match=f"state is of version {version}"):
        look(carried(bundle))
    assert contents(bundle) == before


def test_another_version_of_a_restart_policy_is_refused(bundle: str) -> None:
    change(os.path.join(bundle, "state.json"), lambda value: value["restart"].update(version=2))
    with pytest.raises(ValueError, match="restart policy of version 2"):
        look(carried(bundle))


def test_another_version_of_the_journal_is_refused(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "VERSION", 2)
    with pytest.raises(journal.JournalVersion, match="version 1"):
        look(carried(bundle))


def test_another_version_of_the_handover_is_refused(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = handover.write(carried(bundle))
    monkeypatch.setattr(handover, "VERSION", 2)
    with pytest.raises(ValueError, match="handover is of version 1"):
        handover.read(fd)
    os.close(fd)


def test_a_missing_field_is_named(bundle: str) -> None:
    change(os.path.join(bundle, "state.json"), lambda value: value["init"].pop("start_ticks"))
    with pytest.raises(KeyError, match="start_ticks"):
        look(carried(bundle))
