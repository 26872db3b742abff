"""What can go wrong on the command line: in the words a person acts on, with the exit code it ends in.

Exit codes, the same for every command:

    0          it worked (run, exec, wait, attach: the container's process exited with 0)
    1 … 255    run, exec, wait, attach: the code of the container's process; 128 + N when signal N ended it
    123        run, exec, wait, attach: the process is gone and its status is not known (never a guess)
    125        run, exec, wait, attach: shimctl or the daemon failed and said why; the container's code is not involved
    126, 127   run, create, start, exec: the program could not be executed; it was not found
    1          every other command: it failed and said why
    2          the command line was wrong (125 where 125 means failure)
    130        Ctrl-C
    141        whoever read our output went away (head, less)
"""

from ttrpc.errors import ConnectionLost, PeerViolation, StatusError
from ttrpc.status import Code

EXIT_UNKNOWN = 123
EXIT_FAILED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class CtlError(Exception):
    """An expected failure: one sentence, what to do next, and an exit code when it has one of its own."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class UsageError(CtlError):
    """The command line asks for something that does not go together."""


class DaemonGone(CtlError):
    """The daemon did not answer for as long as we were willing to wait."""


def exit_code_of_failure(message: str) -> int | None:
    """126 or 127 when the runtime's words say that the program itself was the trouble, as every container tool answers.

    Source: runc 1.1 prints the kernel's and Go's words: `exec: "x": executable file not found in $PATH`,
    `exec /x: no such file or directory`, `permission denied`, `exec format error`, `is a directory`.
    """
    text = message.lower()
    if "executable file not found" in text:
        return EXIT_NOT_FOUND
    at = text.find("exec")
    if at < 0 or ("exec:" not in text and "exec /" not in text and "starting container process" not in text):
        return None
    tail = text[text.rfind("exec") :]
    if "no such file or directory" in tail:
        return EXIT_NOT_FOUND
    if any(words in tail for words in ("permission denied", "exec format error", "is a directory")):
        return EXIT_NOT_EXECUTABLE
    return None


def sentence_of(error: BaseException) -> tuple[str, str]:
    """An expected error as (what happened, what to do next); the second may be empty."""
    if isinstance(error, CtlError):
        return error.message, error.hint
    if isinstance(error, StatusError) and error.code == Code.DEADLINE_EXCEEDED:
        return "no answer in time: " + error.message, "see what hangs: shimctl daemon info, shimctl shim list"
    if isinstance(error, StatusError):
        return error.message, _HINTS.get(error.code, "")
    if isinstance(error, PeerViolation):
        return f"the other side does not speak our protocol: {error}", "check --address; versions: shimctl version"
    if isinstance(error, ConnectionLost):
        return f"the connection was lost: {error}", "try again; what is running: shimctl ps -a"
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename}: no such file or directory", ""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {(error.strerror or str(error)).lower()}", ""
    return str(error) or type(error).__name__, ""


_HINTS: dict[int, str] = {
    Code.UNAVAILABLE: "its shim does not answer; the container may well run: shimctl shim list",
    Code.UNIMPLEMENTED: "this daemon or shim does not offer it; versions: shimctl version",
    Code.RESOURCE_EXHAUSTED: "",
    Code.INTERNAL: "that is a bug in shimd; the daemon's log has the details",
}
