"""A short weather of bench/storm: daemon, keeper and shims are killed under load, and nothing is lost or doubled."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.source import ROOT

# The bench does 10,000 with 50 containers; these few go through the same load and the same count.
KILLS, CONTAINERS = 25, 4


@pytest.mark.timeout(240)
def test_nothing_is_lost_or_doubled_while_anything_of_ours_is_killed(tmp_path: Path) -> None:
    found = tmp_path / "counts.json"
    command = [
        sys.executable, "-m", "bench.storm", "--kills", str(KILLS), "--containers", str(CONTAINERS), "--seed", "4",
        "--rate", "4", "--pace", "0.5", "--json", str(found), "--no-store",
    ]  # fmt: skip

    done = subprocess.run(command, cwd=ROOT, check=False, stdin=subprocess.DEVNULL, stdout=-1, stderr=-2, text=True)

    assert done.returncode == 0, done.stdout
    counts = json.loads(found.read_text(encoding="utf-8"))
    assert counts["kills"] == KILLS, done.stdout
    assert counts["statuses_exact"] == counts["containers"] > 0, done.stdout
    assert counts["lines_found"] == counts["lines_expected"] > 0, done.stdout
    assert counts.get("terminal_lines_found") == counts.get("terminal_lines_expected"), done.stdout
    assert counts["events_found"] == counts["events_expected"] > 0, done.stdout
