"""The daemon as commands see it: one object that outlives a daemon's death and return.

A daemon may be killed, restarted or upgraded at any moment. Whoever asks it something here waits for its return and
asks again; only when it stays away longer than our patience is that an error. What must not be asked twice without a
look at what happened goes through daemon.ctl.resume.
"""

import os
import sys
import time

from daemon.ctl.errors import CtlError, DaemonGone
from daemon.stopping import NOT_BEGUN
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost, DeadlineExceeded, StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from typing import Any

    from google.protobuf.message import Message

CONTAINERS = "containerd.services.containers.v1.Containers"
TASKS = "containerd.services.tasks.v1.Tasks"
VERSION = "containerd.services.version.v1.Version"
SHIMD = "shimd.v1.Shimd"

NAMESPACE_KEY = "containerd-namespace-ttrpc"
CALL_S = 120.0  # longer than the daemon's own deadline for the slowest call it makes (create: 60 s)
NOTICE_AFTER_S = 1.0
ABSENT_GRACE_S = 0.5  # a starting daemon replaces its stale socket: for a moment there is none
FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.2
MAX_LOSSES = 8  # a daemon that dies of our very request must not be fed it for ever
DIES_WITHIN_S = 5.0  # of such a request; later deaths are not its doing, and a wait may outlive any number of them


def say(line: str) -> None:
    """Tell the user something that is neither result nor error."""
    print(f"shimctl: {line}", file=sys.stderr, flush=True)


def say_apart(line: str) -> None:
    """The same on a line of its own, after what a container may have left unfinished on the terminal."""
    print(file=sys.stderr)
    say(line)


class Daemon:
    """A connection to the daemon that is made anew whenever it breaks. Owns the client socket.

    Blocks: every call, at most `CALL_S` or its own deadline, plus the patience while the daemon is away.
    """

    def __init__(
        self, address: str, namespace: str, *, patience_s: float = 10.0, notice: "Callable[[str], None]" = say
    ) -> None:
        self.address = address.removeprefix("unix://")
        self.namespace = namespace
        self.patience_s = patience_s
        self._notice = notice
        self._client: BlockingClient | None = None
        self._has_answered = False
        self._away_since: float | None = None

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def metadata(self) -> dict[str, str]:
        """What every request carries."""
        return {NAMESPACE_KEY: self.namespace}

    def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def attempt(self, service: str, method: str, request: "Message", *, timeout_s: float | None = CALL_S) -> "Any":
        """One call, sent once.

        A daemon that is about to end says which calls it did not begin: those are sent again, to the next one.
        Raises: ConnectionLost when the reply was lost: the call may have taken effect. DaemonGone; StatusError.
        """
        while True:
            client = self.connect()
            try:
                reply = client.call(service, method, request, timeout_s=timeout_s, metadata=self.metadata)
            except ConnectionLost:
                self.lose()
                raise
            except StatusError as error:
                self._lose_if_not_begun(error)
                continue
            self._away_since = None
            return reply

    def _lose_if_not_begun(self, error: StatusError) -> None:
        """Have the call sent again when the daemon refused it because it is stopping; it may accept for a while yet.

        Raises: the error itself otherwise; DaemonGone when the daemon stays so for all of the patience.
        """
        if NOT_BEGUN not in error.status.details:
            raise error
        self.lose()
        assert self._away_since is not None
        if time.monotonic() - self._away_since >= self.patience_s:
            raise DaemonGone(f"the daemon at {self.address} is stopping and does not end", hint=_LOOK_HINT)
        time.sleep(LONGEST_PAUSE_S / 4)

    def call(self, service: str, method: str, request: "Message", *, timeout_s: float | None = CALL_S) -> "Any":
        """One call that may be repeated harmlessly: repeated until it is answered or the patience ends.

        Raises: DaemonGone; StatusError, DeadlineExceeded.
        """
        losses = 0
        while losses < MAX_LOSSES:
            sent_at = time.monotonic()
            try:
                return self.attempt(service, method, request, timeout_s=timeout_s)
            except ConnectionLost:
                losses = _counted(losses, sent_at)
        raise DaemonGone(f"the daemon at {self.address} died {MAX_LOSSES} times over {method}", hint=_LOOK_HINT)

    def follow(
        self, service: str, method: str, request: "Callable[[], Message]", *, timeout_s: float | None = None
    ) -> "Iterator[Any]":
        """The messages of a server stream, opened again after each loss with whatever `request` then gives.

        The stream's own end ends it. Raises: DaemonGone; StatusError; DeadlineExceeded when it lasts too long.
        """
        losses = 0
        while losses < MAX_LOSSES:
            client, sent_at = self.connect(), time.monotonic()
            try:
                stream = client.open_stream(service, method, request(), timeout_s=timeout_s, metadata=self.metadata)
                try:
                    while True:
                        message = stream.receive()
                        if message is None:
                            return
                        self._away_since, losses = None, 0
                        yield message
                finally:
                    stream.close()
            except ConnectionLost:
                losses = _counted(losses, sent_at)
                self.lose()
            except StatusError as error:
                self._lose_if_not_begun(error)
        raise DaemonGone(f"the daemon at {self.address} died {losses} times over {method}", hint=_LOOK_HINT)

    def lose(self) -> None:
        """The connection broke: the patience runs from the first such moment until the next answer."""
        self.close()
        if self._away_since is None:
            self._away_since = time.monotonic()

    def connect(self) -> BlockingClient:
        """The connection, made when there is none.

        Blocks: while the daemon is away, as long as the patience allows.
        Raises: DaemonGone; CtlError when it will never work (permissions, not a socket).
        """
        if self._client is not None:
            return self._client
        began = self._away_since if self._away_since is not None else time.monotonic()
        pause_s, noticed = FIRST_PAUSE_S, False
        while True:
            try:
                self._client = BlockingClient.connect(self.address)
            except PermissionError as error:
                raise CtlError(f"permission denied on {self.address}", hint="run it as root: sudo shimctl …") from error
            except (FileNotFoundError, ConnectionError, DeadlineExceeded) as error:
                waited_s = time.monotonic() - began
                if waited_s >= self._patience_for(error):
                    raise self._gone(error) from error
                if waited_s >= NOTICE_AFTER_S and not noticed:
                    noticed = True
                    self._notice(f"the daemon is away; waiting up to {self.patience_s:g} s for it to return")
                time.sleep(min(pause_s, max(0.0, self.patience_s - waited_s)))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            except OSError as error:
                raise CtlError(f"cannot connect to {self.address}: {error.strerror or error}") from error
            else:
                self._has_answered = True
                return self._client

    def _patience_for(self, error: Exception) -> float:
        """A missing socket means a daemon that never was, unless it was there a moment ago."""
        if not isinstance(error, FileNotFoundError) or self._has_answered:
            return self.patience_s
        is_prepared = os.path.isdir(os.path.dirname(self.address) or ".")
        return min(ABSENT_GRACE_S, self.patience_s) if is_prepared else 0.0

    def _gone(self, error: Exception) -> DaemonGone:
        if isinstance(error, FileNotFoundError) and not self._has_answered:
            return DaemonGone(f"the daemon is not running: no socket at {self.address}", hint=_START_HINT)
        return DaemonGone(f"the daemon at {self.address} does not answer", hint=_START_HINT)


_START_HINT = (
    "start it: systemctl start shimd (or: shimd); another address: --address; containers run on: shimctl shim list"
)
_LOOK_HINT = "its log says why: journalctl -u shimd; containers run on without it: shimctl shim list"


def _counted(losses: int, sent_at: float) -> int:
    """One more loss in a row; the first again when the request had been with the daemon for long."""
    return losses + 1 if time.monotonic() - sent_at < DIES_WITHIN_S else 1


def open_daemon(args: "argparse.Namespace") -> Daemon:
    """The daemon that the command line's global options name."""
    return Daemon(args.address, args.namespace, patience_s=args.reconnect)
