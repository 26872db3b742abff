"""shimctl as its users run it: a process with arguments, streams and an exit code."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests.support.waiting import wait_until

RUN_S = 60.0


class Shimctl:
    """Runs the command line against one daemon. ``options`` go before each command, ``prefix`` before the program."""

    def __init__(self, *options: str, env: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> None:
        self.options = options
        self.prefix = prefix
        self.env = {**os.environ, "COLUMNS": "200", **(env or {})}

    def argv(self, *words: str) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "daemon.ctl", *self.options, *words]

    def run(
        self, *words: str, given: str = "", env: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """One command to its end, with this text as its input."""
        return subprocess.run(
            self.argv(*words),
            input=given,
            capture_output=True,
            text=True,
            env={**self.env, **(env or {})},
            timeout=RUN_S,
            check=False,
        )

    def output(self, *words: str, given: str = "", code: int = 0) -> str:
        """The output of a command that must end with this exit code.

        Raises: AssertionError with what it said.
        """
        done = self.run(*words, given=given)
        assert code == done.returncode, (
            f"shimctl {' '.join(words)} ended with {done.returncode}: {done.stderr or done.stdout}"
        )
        return done.stdout

    def start(self, *words: str, **streams: Any) -> "subprocess.Popen[bytes]":
        """A command left running; its streams are pipes unless said otherwise. End it with `finish`."""
        chosen = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        return subprocess.Popen(self.argv(*words), env=self.env, bufsize=0, **chosen)


def read_until(fd: int, text: bytes, *, deadline_s: float = 20.0) -> bytes:
    """Read a stream until a text has come; returns all that was read.

    Raises: AssertionError with what came, when it ends or stays silent.
    """
    os.set_blocking(fd, False)
    got = bytearray()

    def has_come() -> bool:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return False
        except OSError:  # a terminal whose other side has gone
            data = b""
        if not data and text not in got:
            raise AssertionError(f"the stream ended before {text!r} came: {bytes(got)!r}")
        got.extend(data)
        return text in got

    try:
        wait_until(has_come, deadline_s=deadline_s, what=f"{text!r}")
    except AssertionError as error:
        raise AssertionError(f"{error}; so far {bytes(got)!r}") from None
    finally:
        os.set_blocking(fd, True)
    return bytes(got)


def finish(process: "subprocess.Popen[bytes]", *, given: bytes | None = None) -> tuple[int, bytes, bytes]:
    """Wait for a command to end: (exit code, rest of its output, rest of its errors)."""
    try:
        out, err = process.communicate(given, timeout=RUN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it did not end: {out!r} {err!r}") from None
    return process.returncode, out, err


def lines(text: str) -> Sequence[str]:
    """Lines without their ends, empty ones left out."""
    return [line for line in text.splitlines() if line.strip()]
