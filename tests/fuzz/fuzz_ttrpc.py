"""Fuzz the frame decoder and the connection with atheris (the `fuzz` extra): python -m tests.fuzz.fuzz_ttrpc.

Arguments are libFuzzer's, such as -max_total_time=30 or -runs=100000. Without a corpus folder among them it begins
with the committed one and leaves it as it is. A crash is written to the current folder; add it to the corpus.
"""

import os
import subprocess
import sys
import tempfile

import atheris

with atheris.instrument_imports():
    from tests.fuzz import ttrpc_target

CORPUS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus", "ttrpc")


def main() -> None:
    """Run until libFuzzer's arguments say stop; it ends the process itself, so the scratch folder is a parent's."""
    if not any(os.path.isdir(argument) for argument in sys.argv[1:]):
        with tempfile.TemporaryDirectory(prefix="fuzz-ttrpc-") as scratch:
            # libFuzzer adds what it finds to the first folder and only reads the others.
            command = [sys.executable, "-m", "tests.fuzz.fuzz_ttrpc", *sys.argv[1:], scratch, CORPUS]
            sys.exit(subprocess.run(command, check=False).returncode)
    atheris.Setup(sys.argv, ttrpc_target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
