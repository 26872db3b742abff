"""What is generated and committed is fresh."""

import subprocess
import sys

from tests.support.source import ROOT


def test_descriptor_sets_and_stubs_match_the_proto_files() -> None:
    """Stale ones are mended by `make proto`."""
    command = [sys.executable, "-m", "ttrpc.api.generate", "--check"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
