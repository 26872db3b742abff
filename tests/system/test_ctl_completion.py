"""The completion script, loaded by a real bash."""

import os
import shutil
import subprocess

import pytest

from tests.support.ctlbox import CtlBox

TYPE_IN_BASH = """
source /dev/stdin <<< "$SCRIPT"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
compopt() { :; }
shimctl() { $SHIMCTL "$@"; }
_shimctl
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def box(ctlbox: CtlBox) -> CtlBox:
    ctlbox.detached("alpha", "sleep", "1000")
    ctlbox.run("beta", "--", "true")
    return ctlbox


def completed(box: CtlBox, *words: str, cwd: str = "/") -> list[str]:
    """What bash offers for the last word of this line."""
    bash = shutil.which("bash")
    assert bash is not None
    env = {**box.ctl.env, "SCRIPT": box.ctl.output("completion", "bash"), "SHIMCTL": " ".join(box.ctl.argv())}
    env["PYTHONPATH"] = os.getcwd()
    done = subprocess.run(
        [bash, "-c", TYPE_IN_BASH, "bash", "shimctl", *words],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_commands_options_and_values(box: CtlBox) -> None:
    assert completed(box, "ru") == ["run"]
    assert completed(box, "logs", "--fo") == ["--follow"]
    assert completed(box, "run", "--restart", "al") == ["always"]


def test_ids_that_make_sense(box: CtlBox) -> None:
    assert completed(box, "rm", "") == ["alpha", "beta"] or completed(box, "rm", "") == ["beta", "alpha"]
    assert completed(box, "exec", "") == ["alpha"]
    assert completed(box, "start", "") == ["beta"]
    assert completed(box, "rm", "alpha", "") == ["beta"]
    assert completed(box, "shim", "logs", "a") == ["alpha"]


def test_paths_are_the_shell_s_own(box: CtlBox, tmp_path: "os.PathLike[str]") -> None:
    os.mkdir(os.path.join(tmp_path, "roots"))
    with open(os.path.join(tmp_path, "rooms"), "w", encoding="ascii"):
        pass

    assert completed(box, "run", "--rootfs", "roo", cwd=os.fspath(tmp_path)) == ["roots"]
    assert sorted(completed(box, "run", "--env-file", "roo", cwd=os.fspath(tmp_path))) == ["rooms", "roots"]
