"""What systemd wants to hear and what it hands over: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)."""

import os
import socket
from collections.abc import Mapping

# sd_listen_fds(3): passed sockets begin here.
FIRST_LISTEN_FD = 3


class Notifier:
    """Sends states to NOTIFY_SOCKET; does nothing when there is none. Owns no fd between calls."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]

    def tell(self, **states: object) -> None:
        """Send ``READY=1`` and the like. A supervisor that does not listen is not our failure."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in states.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            try:
                sender.sendto(text.encode(), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT, self._address)
            except OSError:
                pass


def watchdog_s(environ: Mapping[str, str]) -> float | None:
    """How often the watchdog must hear from us at least; None when nobody watches this process."""
    pid = environ.get("WATCHDOG_PID")
    if pid and pid != str(os.getpid()):
        return None
    interval_us = environ.get("WATCHDOG_USEC", "")
    return int(interval_us) / 1e6 if interval_us.isdigit() and int(interval_us) > 0 else None


def inherited_listeners(environ: Mapping[str, str]) -> list[socket.socket]:
    """Listening sockets that systemd opened for us, which we own from here on. Others' fds are left alone."""
    if environ.get("LISTEN_PID") != str(os.getpid()) or not environ.get("LISTEN_FDS", "").isdigit():
        return []
    listeners = []
    for fd in range(FIRST_LISTEN_FD, FIRST_LISTEN_FD + int(environ["LISTEN_FDS"])):
        os.set_inheritable(fd, False)
        try:
            made = socket.socket(fileno=fd)
        except OSError:
            continue
        if made.family == socket.AF_UNIX and made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            listeners.append(made)
        else:
            made.detach()
    return listeners


# Meant for this process alone; a shim or runc that saw them would speak to our supervisor in our name.
PRIVATE_VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "SHIMD_FAULTS",
    "SHIMD_FAULTS_ARMED",
)
