"""What the shell is offered."""

import argparse
from typing import Any

import pytest

from daemon.ctl import completion


def offered(*words: str, state: str = "/nowhere", address: str = "/nowhere/x") -> list[str]:
    return completion.candidates(words, argparse.Namespace(address=address, namespace="default", state=state))


def test_commands_and_groups() -> None:
    assert offered("r") == ["resume", "rm", "run"]
    assert offered("shim", "") == ["list", "state", "exec", "kill", "logs", "wait", "stack", "upgrade", "delete"]
    assert offered("completion", "b") == ["bash"]
    assert offered("--a") == ["--address"]
    assert offered("nonsense", "") == []


def test_options_of_the_command_and_the_global_ones() -> None:
    assert offered("logs", "--t") == ["--tail", "--timestamps"]
    assert "--namespace" in offered("logs", "--")


def test_values_of_options() -> None:
    assert offered("run", "--restart", "on") == ["on-failure"]
    assert offered("run", "--log-driver", "") == ["json-file", "raw", "none"]
    assert offered("kill", "-s", "TE") == ["TERM"]
    assert offered("run", "--cap-add", "NET_A") == ["NET_ADMIN"]
    assert offered("run", "--rootfs", "x") == [":dirs"]
    assert offered("run", "--env-file", "") == [":files"]
    assert offered("run", "--hostname", "") == []


def test_after_the_dashes_nothing_is_offered() -> None:
    assert offered("run", "--rootfs", "/", "--", "") == []


def test_ids_come_from_the_shims_without_a_daemon(tmp_path: Any) -> None:
    (tmp_path / "io.containerd.runtime.v2.task/default/web").mkdir(parents=True)
    (tmp_path / "io.containerd.runtime.v2.task/default/.gone").mkdir()

    assert offered("shim", "logs", "", state=str(tmp_path)) == ["web"]
    assert offered("shim", "logs", "web", "", state=str(tmp_path)) == []
    assert offered("--state", str(tmp_path), "shim", "kill", "w") == ["web"]


def test_without_a_daemon_it_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(words=["--", "rm", ""], address="/nowhere/x", namespace="default", state="/nowhere")

    assert completion.complete(args) == 1
    assert capsys.readouterr() == ("", "")
