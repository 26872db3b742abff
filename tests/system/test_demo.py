"""`make demo` holds all its claims, and cleans up when one does not hold."""

import os
import subprocess
import sys

import pytest

from tests.support.source import ROOT

DEMO = os.path.join(ROOT, ".ci", "demo.sh")


def run_demo(venv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VENV": venv}
    environment.pop("SHIMD_KEEPER", None)  # a keeper of its own, as a person's demo has
    return subprocess.run(
        ["bash", DEMO], check=False, stdin=subprocess.DEVNULL, stdout=-1, stderr=-2, text=True, env=environment
    )


@pytest.mark.timeout(120)
def test_every_claim_of_the_demo_holds() -> None:
    done = run_demo(os.path.dirname(os.path.dirname(sys.executable)))

    assert "✘" not in done.stdout
    assert done.stdout.rstrip().endswith("Every claim held.")
    assert done.returncode == 0


def test_a_demo_without_a_daemon_says_so_and_leaves_nothing(short_dir: str) -> None:
    """A stub that exits stands for a shimd that does not come up; the leak check looks for what is left."""
    os.makedirs(os.path.join(short_dir, "bin"))
    for name in ("shimd", "shimctl"):
        path = os.path.join(short_dir, "bin", name)
        with open(path, "w", encoding="ascii") as file:
            file.write("#!/bin/sh\necho no daemon here\n[ $1 = config ]\n")
        os.chmod(path, 0o755)

    done = run_demo(short_dir)

    assert done.returncode != 0
    assert "the demo failed; everything it had made is removed" in done.stdout
