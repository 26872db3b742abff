"""The labels of a container record that carry what a task needs again: names, and how each is read. Pure.

containerd's own labels where it has one, so that its other clients understand our records and we theirs.
"""

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# Ours. The request tells our record from one of the same name made by somebody else while a reply was lost.
REQUEST = "shimd.io/request"
STDIO = "shimd.io/stdio"
AUTO_REMOVE = "shimd.io/auto-remove"  # "true": by the daemon
BY_CLIENT = "client"

# containerd's. Sources: its restart monitor plugin and its client package.
RESTART_STATUS = "containerd.io/restart.status"
RESTART_POLICY = "containerd.io/restart.policy"
RESTART_LOG_URI = "containerd.io/restart.loguri"
RESTART_STOPPED = "containerd.io/restart.explicitly-stopped"
STOP_SIGNAL = "io.containerd.image.config.stop-signal"

DEFAULT_STOP_SIGNAL = "SIGTERM"


class Stdio:
    """Where a task's streams go: the URIs of Tasks.Create and whether they are one terminal."""

    __slots__ = ("stderr", "stdin", "stdout", "terminal")

    def __init__(self, stdin: str = "", stdout: str = "", stderr: str = "", *, terminal: bool = False) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = terminal

    def as_label(self) -> str:
        """The label's value; empty URIs are left out."""
        fields = {"stdin": self.stdin, "stdout": self.stdout, "stderr": self.stderr}
        given: dict[str, object] = {name: value for name, value in fields.items() if value}
        if self.terminal:
            given["terminal"] = True
        return json.dumps(given, separators=(",", ":"))

    @property
    def log_path(self) -> str:
        """The log file behind stdout, or nothing."""
        for scheme in ("log://", "file://"):
            if self.stdout.startswith(scheme):
                from urllib.parse import unquote

                return unquote(self.stdout.removeprefix(scheme).partition("?")[0])
        return ""

    @property
    def is_foreign(self) -> bool:
        """Whether the log is a plain file that a shim of containerd's appends to."""
        return self.stdout.startswith("file://")

    def without_attach(self) -> "Stdio":
        """The streams for a shim that has no Attach, when nobody is there to hold FIFOs."""
        uris = ("" if uri == "attach:" else uri for uri in (self.stdin, self.stdout, self.stderr))
        return Stdio(*uris, terminal=self.terminal)


def stdio_of(labels: "Mapping[str, str]") -> Stdio | None:
    """The stdio a record was created with; None for a record other clients made, or a damaged label."""
    try:
        found = json.loads(labels[STDIO])
        return Stdio(
            str(found.get("stdin", "")),
            str(found.get("stdout", "")),
            str(found.get("stderr", "")),
            terminal=bool(found.get("terminal")),
        )
    except (KeyError, ValueError, AttributeError):
        return None


def has_restart_policy(labels: "Mapping[str, str]") -> bool:
    """Whether the daemon would start the container again."""
    return labels.get(RESTART_POLICY, "no") not in ("", "no")


def stop_signal_of(labels: "Mapping[str, str]") -> str:
    """The signal that asks the container to end."""
    return labels.get(STOP_SIGNAL) or DEFAULT_STOP_SIGNAL
