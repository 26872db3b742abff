"""The old process's side of an upgrade: the program that is to take our place, from its check to its first accept."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import trio

from daemon import faults
from daemon.errors import failed_precondition
from daemon.handover import FD_VARIABLE, PROTOCOL, Channel, Gone, Misunderstood, Seat, send_kept
from daemon.notify import PRIVATE_VARIABLES, Notifier
from daemon.version import VERSION
from ttrpc.api import shimd
from ttrpc.errors import StatusError

# Of what is private to us, what our successor is to have as well: it answers to the same supervisor.
_SHARED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "FDSTORE", "SHIMD_FDSTORE", "SHIMD_FAULTS", "SHIMD_FAULTS_ARMED")
MAX_WORDS_BYTES = 4096


def command_of(program: str) -> list[str]:
    """How a program is started in our place: with our arguments; an empty name stands for what we were started as."""
    if program:
        return [program, *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]


async def check(program: str, environ: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    """Have the program say whether it could serve in our place; it touches nothing. Returns what it says.

    Blocks: at most ``timeout_s``. Raises: FailedPrecondition with its own words.
    """
    command = [*command_of(program), "--check=json"]
    name = program or command[0]
    kept = {key: value for key, value in environ.items() if key not in PRIVATE_VARIABLES}
    done: subprocess.CompletedProcess[bytes] | None = None
    try:
        with trio.move_on_after(timeout_s):
            done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, env=kept)
    except OSError as error:
        raise failed_precondition(f"{name} cannot be started: {error.strerror or error}") from None
    if done is None:
        raise failed_precondition(f"{name} --check did not end within {timeout_s:g} s")
    if done.returncode != 0:
        raise failed_precondition(f"{name} refuses: {_words(done.stderr) or f'exit code {done.returncode}'}")
    try:
        said: dict[str, Any] = json.loads(done.stdout)
        protocol = int(said["handover"])
        str(said["version"]), int(said["schema"]), int(said["writes_schema"]), int(said["oldest_reader"])
    except (ValueError, KeyError, TypeError):
        raise failed_precondition(f"{name} does not answer --check as shimd does") from None
    if protocol != PROTOCOL:
        raise failed_precondition(f"{name} hands over by protocol {protocol}, this daemon by {PROTOCOL}: restart it")
    faults.point("upgrade.checked")
    return said


def _words(said: bytes) -> str:
    return said[-MAX_WORDS_BYTES:].decode("utf-8", "replace").strip().removeprefix("shimd: ")


class Successor:
    """A daemon that waits to take our place. Owns the process, until it serves, and our end of the channel."""

    def __init__(self, process: "subprocess.Popen[bytes]", channel: Channel, record: "shimd.UpgradeRecord") -> None:
        self.process = process
        self.record = record
        self._channel = channel
        self.closed_at_ns = 0

    @classmethod
    def start(cls, program: str, upgrade_id: str, environ: Mapping[str, str]) -> "Successor":
        """Start it. Raises: FailedPrecondition."""
        kept = {key: value for key, value in environ.items() if key in _SHARED or key not in PRIVATE_VARIABLES}
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with its:
            kept[FD_VARIABLE] = str(its.fileno())
            try:
                process = subprocess.Popen(
                    command_of(program), stdin=subprocess.DEVNULL, env=kept, pass_fds=[its.fileno()]
                )
            except OSError as error:
                ours.close()
                raise failed_precondition(f"{program} cannot be started: {error.strerror or error}") from None
        record = shimd.UpgradeRecord(id=upgrade_id, from_version=VERSION, from_pid=os.getpid(), to_pid=process.pid)
        faults.point("upgrade.spawned")
        return cls(process, Channel(ours), record)

    async def meet(self, seat: Seat, timeout_s: float) -> None:
        """Share what can be shared, and wait until it is ready for the rest.

        Raises: FailedPrecondition; the process is to be ended then.
        """
        kinds = [(listener.is_ours, listener.is_stored) for listener in seat.listeners]
        fds = [*(lock.fd for lock in seat.locks), *(listener.sock.fileno() for listener in seat.listeners)]
        places = [lock.path for lock in seat.locks]
        record = self.record.SerializeToString().hex()
        try:
            with trio.fail_after(timeout_s):
                await self._channel.send("hello", fds, protocol=PROTOCOL, locks=places, listeners=kinds, record=record)
                said, _ = await self._channel.receive("ready", "refused")
        except trio.TooSlowError:
            raise failed_precondition(f"the new program was not ready within {timeout_s:g} s") from None
        except Gone:
            raise failed_precondition(f"the new program died at its start: {await self._how_it_ended()}") from None
        except Misunderstood as error:
            raise failed_precondition(f"the new program speaks otherwise: {error}") from None
        if said["word"] == "refused":
            raise failed_precondition(f"the new program refuses: {said.get('reason', '')}")
        self.record.to_version = str(said["version"])

    async def give(self, seat: Seat, notifier: Notifier, timeout_s: float) -> None:
        """Give the place away. The store is closed already; from here to the return nobody serves.

        Order: its word that it has the store → our connections closed → its word that it accepts → ours to the
        supervisor. A word before that could not be taken back: who is not the main process is not listened to.
        Raises: StatusError, with the process ended: the place is ours again, and what connections are left.
        """
        try:
            with trio.fail_after(timeout_s):
                await send_kept(self._channel, seat.kept, closed_at_ns=self.closed_at_ns)
                faults.point("upgrade.given")
                await self._channel.receive("loaded")
                seat.close_kept()  # from now on it may read them, so that they could not be taken back whole
                await self._channel.send("commit")
                faults.point("upgrade.committed")
                said, _ = await self._channel.receive("serving")
        except trio.TooSlowError:
            reason = f"the new program did not serve within {timeout_s:g} s"
        except Gone:
            reason = f"the new program died: {await self._how_it_ended()}"
        except (Misunderstood, OSError) as error:
            reason = f"it could not be handed over: {error}"
        else:
            self.record.done, self.record.gap_ns = True, int(said["gap_ns"])
            notifier.tell(MAINPID=self.process.pid)
            faults.point("upgrade.told")
            self._channel.close()  # it may speak now
            return
        await self.end()
        raise failed_precondition(reason)

    async def _how_it_ended(self) -> str:
        """In words. Its channel is closed, so its end is near, unless it only closed that."""
        with trio.move_on_after(1.0):
            await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
        code = self.process.returncode
        if code is None:
            return "it closed the channel"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}; its log says why"

    async def end(self) -> None:
        """Have it gone: nobody but us has locks and sockets then. Idempotent."""
        with trio.CancelScope(shield=True):
            if self.process.poll() is None:
                self.process.kill()
                await trio.to_thread.run_sync(self.process.wait)
        self._channel.close()

    def failed(self, error: StatusError) -> "shimd.UpgradeRecord":
        """The record of an upgrade that came to nothing."""
        self.record.done, self.record.reason = False, error.message
        return self.record

    def forward(self, number: int) -> None:
        """Pass a signal on that was meant for the daemon, whoever that is by now."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def mark_closed(self) -> None:
        """The door was closed: from now on those who connect wait."""
        self.closed_at_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
