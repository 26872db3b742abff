"""What systemd wants to hear and what it hands over: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)."""

import array
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping

# What the listening socket is called in systemd's store of descriptors.
STORED_NAME = "shimd"
# sd_listen_fds(3): passed sockets begin here.
FIRST_LISTEN_FD = 3
# The main process for a moment. Told to end meanwhile, it is us who are meant.
_STAND_IN = """\
import array, os, select, signal, socket, sys
address, pid = os.fsencode(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
os.write(1, b".")
os.read(0, 1)
told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
told.settimeout(2.0)
told.sendto(b"MAINPID=%d" % pid, address)
heard, until = os.pipe()
told.sendmsg([b"BARRIER=1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [until]))], 0, address)
os.close(until)
select.select([heard], [], [], 2.0)
"""
# What systemd is told it hears late where it is busy; a process that is gone by then is no main process.
_HEARD_S = 2.0


class Notifier:
    """Sends states to NOTIFY_SOCKET; does nothing when there is none. Owns no fd between calls."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        # systemd 254 and later say how many descriptors they keep; our unit says the same to earlier ones' daemons.
        self._stores = any(environ.get(name, "") not in ("", "0") for name in ("FDSTORE", "SHIMD_FDSTORE"))
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._held: dict[str, object] | None = None

    def hold(self) -> None:
        """Keep what is to be told until `release`: as long as another process speaks for us nobody would listen."""
        self._held = {}

    def release(self) -> None:
        """Tell what is still so, and everything from now on. Idempotent."""
        held, self._held = self._held, None
        if held:
            self._send(held)

    def tell(self, **states: object) -> None:
        """Send ``READY=1`` and the like. A supervisor that does not listen is not our failure."""
        if self._held is not None:
            self._held.update(states)
        else:
            self._send(states)

    def reintroduce(self) -> bool:
        """Have systemd look again whose child its main process is; to be called when that has become its own.

        It looks when the main process changes, and takes one that is another's child for a guest from then on: a stop
        does not wait for its end. So another process is the main one for a moment, and names us again. If it fails at
        that, the unit's next start finds us and does the same. Returns whether it was asked for.
        Blocks: some 20 ms; 4 s where nobody listens.
        """
        if not self._address.startswith("/"):
            return False
        command = [sys.executable, "-I", "-S", "-c", _STAND_IN, self._address, str(os.getpid())]
        nothing = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=nothing) as stand_in:
            assert stand_in.stdin is not None
            assert stand_in.stdout is not None
            return bool(stand_in.stdout.read(1)) and self._send({"MAINPID": stand_in.pid}) and self._wait_heard()

    def _wait_heard(self) -> bool:
        """Wait until all that was told has been heard. Blocks: at most _HEARD_S. Source: sd_notify(3), BARRIER=1."""
        heard_fd, until_fd = os.pipe2(os.O_CLOEXEC)
        try:
            self._send({"BARRIER": 1}, until_fd)
            os.close(until_fd)
            poll = select.poll()
            poll.register(heard_fd)
            return bool(poll.poll(_HEARD_S * 1000))
        finally:
            os.close(heard_fd)

    def store(self, listener: socket.socket, name: str) -> bool:
        """Have the supervisor keep a socket for our next start (FDSTORE=1); false when it does not do that."""
        return self._stores and self._send({"FDSTORE": 1, "FDNAME": name}, listener.fileno())

    def _send(self, states: Mapping[str, object], *fds: int) -> bool:
        if not self._address:
            return False
        text = "\n".join(f"{name}={value}" for name, value in states.items())
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendmsg([text.encode()], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT, self._address)
        except OSError:  # nobody listens, or there is no fd left to say it with
            return False
        return True


def watchdog_s(environ: Mapping[str, str]) -> float | None:
    """How often the watchdog must hear from us at least; None when nobody watches this process."""
    pid = environ.get("WATCHDOG_PID")
    if pid and pid != str(os.getpid()):
        return None
    interval_us = environ.get("WATCHDOG_USEC", "")
    return int(interval_us) / 1e6 if interval_us.isdigit() and int(interval_us) > 0 else None


def inherited_listeners(environ: Mapping[str, str]) -> list[tuple[socket.socket, str]]:
    """Listening sockets that systemd opened or kept for us, with their names; ours from here on. Others' fds are left
    alone.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()) or not environ.get("LISTEN_FDS", "").isdigit():
        return []
    listeners = []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    for number in range(int(environ["LISTEN_FDS"])):
        fd = FIRST_LISTEN_FD + number
        os.set_inheritable(fd, False)
        try:
            made = socket.socket(fileno=fd)
        except OSError:
            continue
        if made.family == socket.AF_UNIX and made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            listeners.append((made, names[number] if number < len(names) else ""))
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
    "FDSTORE",
    "SHIMD_FDSTORE",
    "SHIMD_HANDOVER_FD",
    "SHIMD_FAULTS",
    "SHIMD_FAULTS_ARMED",
)
