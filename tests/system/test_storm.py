"""A short weather of bench/daemon_storm: the daemon is killed under load, and nothing is lost or doubled."""

import subprocess
import sys

import pytest

from tests.support.source import ROOT

KILLS = 8  # the bench does a hundred; these few go through the same load and the same count


@pytest.mark.timeout(180)
def test_nothing_is_lost_or_doubled_over_a_row_of_kills() -> None:
    command = [sys.executable, "-m", "bench.daemon_storm", "--kills", str(KILLS), "--no-store"]

    done = subprocess.run(command, cwd=ROOT, check=False, stdin=subprocess.DEVNULL, stdout=-1, stderr=-2, text=True)

    assert done.returncode == 0, done.stdout
    assert "nothing lost, nothing doubled, no command failed" in done.stdout
