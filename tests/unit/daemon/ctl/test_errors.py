"""Every failure ends in a sentence and an exit code."""

import pytest

from daemon.ctl.errors import CtlError, exit_code_of_failure, sentence_of
from ttrpc.errors import ConnectionLost, DeadlineExceeded, StatusError
from ttrpc.status import Code

RUNC = "OCI runtime create failed: runc create failed: unable to start container process: "


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (RUNC + 'exec: "nope": executable file not found in $PATH: unknown', 127),
        (RUNC + 'exec: "/nope": stat /nope: no such file or directory', 127),
        (RUNC + 'exec: "/etc/passwd": permission denied', 126),
        (RUNC + 'exec: "/etc": is a directory: permission denied', 126),
        ("exec /text: exec format error", 126),
        (RUNC + 'error during container init: error mounting "/a" to rootfs: no such file or directory', None),
        ("OCI runtime exec failed: open /proc/1/ns/mnt: permission denied", None),
        ("container 'a' not found", None),
    ],
)
def test_the_program_s_own_trouble_has_its_own_codes(words: str, code: int | None) -> None:
    """126: it cannot be executed; 127: it is not there. Trouble around it is not its own."""
    assert code == exit_code_of_failure(words)


@pytest.mark.parametrize(
    ("error", "says", "hints"),
    [
        (CtlError("a", hint="b"), "a", "b"),
        (StatusError(Code.NOT_FOUND, "container 'x' not found"), "container 'x' not found", ""),
        (StatusError(Code.UNAVAILABLE, "gone"), "gone", "shim list"),
        (DeadlineExceeded("State was not answered within 2 s"), "no answer in time", "daemon info"),
        (ConnectionLost("the server closed the connection"), "connection was lost", "try again"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: no such file", ""),
        (PermissionError(13, "Permission denied", "/y"), "/y: permission denied", ""),
    ],
)
def test_each_error_is_told_with_what_to_do(error: Exception, says: str, hints: str) -> None:
    message, hint = sentence_of(error)

    assert says in message
    assert hints in hint
