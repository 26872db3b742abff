"""The keeper of our shims: started after us, and again when it has ended. It is never ours to end (shim/SHIM.md).

Whether it lives is told by a connection it never speaks on: nothing is polled. It outlives us, so mostly it is there.
"""

import logging
import os
import socket

import trio

from daemon.config import DEFAULT_RUNTIME, Config
from daemon.shims import launch
from ttrpc.errors import StatusError

log = logging.getLogger(__name__)

# Agreed with shim/launch.py, whose words are the same in every version.
MAGIC = b"shimd-keeper 1"
WATCH = MAGIC + b"\0watch\0"
OK, STALE = b"ok", b"stale"
ANSWER_MAX_BYTES = 65536
ENSURE_S, ANSWER_S = 10.0, 20.0
# Before it is started again; doubles while it lives no longer than STEADY_S.
PAUSE_FIRST_S, PAUSE_MAX_S, STEADY_S = 0.1, 30.0, 10.0


class Unwatched(Exception):
    """Why a keeper cannot be watched."""


async def keep(config: Config, publish_binary: str) -> None:
    """Have a keeper serve for as long as this runs, unless that is switched off (configuration, SHIMD_KEEPER=off)."""
    if not config.keeper.enabled or os.environ.get("SHIMD_KEEPER") == "off":
        return
    try:
        path = launch.resolve(DEFAULT_RUNTIME, "", config.runtimes)
    except StatusError as error:
        log.warning("no keeper", extra={"reason": error.message})
        return
    program = launch.Program(path, config.grpc_address, publish_binary, config.shim_socket_dir)
    pause_s, reason = PAUSE_FIRST_S, ""
    while True:
        began = trio.current_time()
        try:
            await watch(await launch.ensure_keeper(program, ENSURE_S))
            why = "it has ended"
        except (StatusError, Unwatched) as error:
            why = str(error)
        if why != reason:
            log.warning("the keeper is started again", extra={"reason": why})
            reason = why
        lived_s = trio.current_time() - began
        pause_s = PAUSE_FIRST_S if lived_s > STEADY_S else min(2 * pause_s, PAUSE_MAX_S)
        await trio.sleep(pause_s)


async def watch(path: str) -> None:
    """Wait for a keeper's end, or until it forks no more because its code is out of date.

    Raises: Unwatched when it does not answer, or not as it should.
    """
    try:
        made = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise Unwatched(f"no socket to ask it with: {error.strerror}") from None
    with made as connection:
        try:
            with trio.fail_after(ANSWER_S):
                await connection.connect(path)
                await connection.send(WATCH)
                answer = (await connection.recv(ANSWER_MAX_BYTES)).split(b"\0", 2)
        except (OSError, trio.TooSlowError) as error:
            raise Unwatched(f"it does not answer: {type(error).__name__} {error}") from None
        if len(answer) != 3 or answer[1] not in (OK, STALE):
            raise Unwatched(f"it answers {b' '.join(answer)[:200]!r}")
        if answer[1] == STALE:
            log.info("the keeper is out of date")
            return
        log.info("a keeper serves", extra={"pid": answer[2].decode(errors="replace")})
        try:
            await connection.recv(1)
        except OSError:
            pass  # it ended
