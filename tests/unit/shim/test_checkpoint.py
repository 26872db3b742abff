"""Checkpoints: criu's working directory, its log, and how a failure is told; the test plays the runtime."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from shim.task.checkpoint import checkpoint
from shim.task.container import Container
from shim.task.lifecycle import RUNNING
from tests.support.stage import Stage
from ttrpc.api import runc
from ttrpc.errors import StatusError


@pytest.fixture
def stage(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(str(tmp_path), monkeypatch)
    yield made
    made.close()


def running(stage: Stage) -> Container:
    container = stage.container()
    container.init.lifecycle.record("created")
    container.init.lifecycle.record("started")
    return container


def work_path(stage: Stage) -> str:
    argv = stage.running_calls()[0][1]
    return argv[argv.index("--work-path") + 1]


def leave_log(path: str, words: str) -> None:
    os.makedirs(path)
    with open(os.path.join(path, "dump.log"), "w", encoding="utf-8") as file:
        file.write(words)


def test_criu_works_in_containerds_directory_and_leaves_nothing_there(stage: Stage) -> None:
    os.mkdir(stage.bundle.file("work"))
    asked = stage.ask(checkpoint(running(stage), "/image", runc.CheckpointOptions()))
    assert work_path(stage) == stage.bundle.file("work", "criu-work")
    leave_log(work_path(stage), "all went well")
    stage.does("checkpoint")

    assert asked.result() is None
    assert os.listdir(stage.bundle.file("work")) == []
    assert not os.path.exists(stage.bundle.file("criu-dump.log"))


def test_the_log_of_a_failure_is_kept_and_named(stage: Stage) -> None:
    container = running(stage)
    asked = stage.ask(checkpoint(container, "/image", runc.CheckpointOptions()))
    leave_log(work_path(stage), "vdso: unexpected")
    stage.fails("checkpoint", "criu failed: type DUMP errno 0\\nlog file: /gone/dump.log")

    kept = stage.bundle.file("criu-dump.log")
    with pytest.raises(StatusError) as error:
        asked.result()
    assert error.value.message == f"OCI runtime checkpoint failed: criu failed: type DUMP errno 0 (criu's log: {kept})"
    with open(kept, encoding="utf-8") as file:
        assert file.read() == "vdso: unexpected"
    assert container.state == RUNNING


def test_a_runtime_without_criu_is_told_in_its_own_words(stage: Stage) -> None:
    asked = stage.ask(checkpoint(running(stage), "/image", runc.CheckpointOptions()))
    stage.fails("checkpoint", "criu: not found")

    with pytest.raises(StatusError, match=r"^OCI runtime checkpoint failed: criu: not found$"):
        asked.result()


def test_a_directory_named_by_the_caller_is_the_callers(stage: Stage, tmp_path: Any) -> None:
    work = str(tmp_path / "own")
    asked = stage.ask(checkpoint(running(stage), "/image", runc.CheckpointOptions(work_path=work)))
    assert work_path(stage) == work
    leave_log(work, "all went well")
    stage.does("checkpoint")

    assert asked.result() is None
    assert os.listdir(work) == ["dump.log"]
