"""Run a command on a terminal and type lines into it, each when a prompt is there.

    python type_on_terminal.py LINE … -- COMMAND …

Prints what the terminal showed and exits with the command's exit code.
"""

import os
import pty
import re
import select
import sys
import time

PROMPT = b"# "
DEADLINE_S = 20.0
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")  # such as the shell's question where the cursor is


def read_until(terminal: int, wanted: bytes | None, ends_at: float) -> bytes:
    """What the terminal shows until `wanted` ends it, or until it is closed; control sequences are left out.

    Raises: TimeoutError.
    """
    shown = b""
    while wanted is None or not shown.endswith(wanted):
        if not select.select([terminal], [], [], max(0.0, ends_at - time.monotonic()))[0]:
            raise TimeoutError(f"waited {DEADLINE_S:g} s for {wanted!r}; the terminal shows {shown!r}")
        try:
            data = os.read(terminal, 4096)
        except OSError:  # EIO: the other side is closed. Source: pty(7)
            break
        if not data:
            break
        shown = CONTROL.sub(b"", shown + data)
    return shown


def main(argv: list[str]) -> int:
    at = argv.index("--")
    lines, command = argv[:at], argv[at + 1 :]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    ends_at = time.monotonic() + DEADLINE_S
    shown = b""
    for line in lines:
        shown += read_until(terminal, PROMPT, ends_at)
        os.write(terminal, line.encode() + b"\n")
    shown += read_until(terminal, None, ends_at)
    _, status = os.waitpid(pid, 0)
    sys.stdout.buffer.write(shown.replace(b"\r\n", b"\n"))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
