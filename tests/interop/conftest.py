"""The two plays of a scenario: each in a containerd of its own, fresh and gone afterwards."""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator

import pytest

from tests.interop.compare import Notes
from tests.interop.play import Play
from tests.interop.scenario import Scenario
from tests.support.containerdbox import GO_RUNTIME, OUR_RUNTIME, ContainerdBox, missing_programs
from tests.support.recorder import Recorder

GO = os.environ.get("SHIMD_INTEROP_GO", GO_RUNTIME)
OURS = os.environ.get("SHIMD_INTEROP_OURS", OUR_RUNTIME)  # the Go shim on both sides tests the scenarios themselves
SHIMS = ("containerd-shim-runc-v2", "containerd-shim-shimd-v2")
IS_WHOLE = os.environ.get("SHIMD_INTEROP") == "whole"

_count = itertools.count(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep to the short form unless the whole is asked for, or tests are named with -k."""
    here = os.path.dirname(__file__)
    ours = [item for item in items if str(item.path).startswith(here)]
    for item in ours:
        item.add_marker(pytest.mark.root)
    if IS_WHOLE or config.option.keyword:
        return
    longer = [item for item in ours if item.get_closest_marker("long") is not None]
    if longer:
        config.hook.pytest_deselected(items=longer)
        items[:] = [item for item in items if item not in longer]


@pytest.fixture(autouse=True)
def containerd_is_there() -> None:
    missing = missing_programs()
    if missing:
        pytest.fail(
            f"this machine lacks {', '.join(missing)}; `make interop` installs containerd from Debian", pytrace=False
        )


@pytest.fixture
def perform() -> Callable[[Scenario, str], Notes]:
    """Play a scenario on a runtime; returns its notes."""
    return perform_in_a_box


def perform_in_a_box(scenario: Scenario, runtime: str) -> Notes:
    with open_play(runtime, is_recorded=scenario.is_recorded) as play:
        scenario.script(play)
        play.finish(scenario.order)
        return play.notes


@pytest.fixture
def play() -> Iterator[Play]:
    """A play on our shim, with a recorder, for what the Go shim has no equal of."""
    with open_play(OURS, is_recorded=True) as play:
        yield play


@contextlib.contextmanager
def open_play(runtime: str, *, is_recorded: bool) -> Iterator[Play]:
    """A fresh containerd and all that goes with it; nothing of it is left afterwards."""
    folder = tempfile.mkdtemp(prefix="i")
    namespace = f"{os.path.basename(os.path.dirname(folder))}-{next(_count)}"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        recorder = Recorder(folder, SHIMS) if is_recorded else None
        if recorder is not None:
            stack.callback(recorder.close)
        box = ContainerdBox(folder, namespace, path_first=[recorder.bin] if recorder else ())
        stack.callback(box.stop)
        box.start()
        play = Play(runtime, box, recorder)
        stack.callback(play.close)
        try:
            yield play
        except BaseException as error:
            error.add_note(told_about(play, runtime))
            raise


def worth_reading(log: str) -> list[str]:
    """The last lines of containerd's log without its start-up."""
    return [line for line in log.splitlines() if "loading plugin" not in line and "skip loading" not in line][-40:]


def told_about(play: Play, runtime: str) -> str:
    """What helps to understand a play that broke."""
    parts = [f"on {runtime}", "notes:", *(f"  {label}: {value}" for label, value in play.notes)]
    parts += ["events:", *(f"  {line}" for line in play.events.lines())]
    parts += ["left:", f"  {play.box.leftovers()}", "containerd's log:", *worth_reading(play.box.log())]
    if play.recorder is not None:
        parts += [f"connections to nobody: {play.recorder.refused}", "transcript:", play.recorder.text()]
    return "\n".join(parts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of the comparison: each scenario, how much of it was compared, what differs on purpose."""
    rows = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            properties = dict(report.user_properties)
            if report.when == "call" and "compared" in properties:
                rows.append((report.nodeid.partition("[")[2].rstrip("]"), outcome, properties))
    if not rows:
        return
    same = sum(outcome == "passed" and not properties["accepted"] for _, outcome, properties in rows)
    terminalreporter.section(f"the Go shim and ours: {same} of {len(rows)} scenarios alike in everything")
    for name, outcome, properties in sorted(rows, key=lambda row: row[0]):
        word = "DIFFERS" if outcome == "failed" else "better" if properties["accepted"] else "same"
        terminalreporter.line(f"{name:36} {properties['compared']:3} observations  {word}")
        for reason in properties["accepted"]:
            terminalreporter.line(f"    {reason}")
