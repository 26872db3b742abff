"""The keeper of our shims: started after us, and again when it has ended (shim/SHIM.md).

Whether it lives is told by a connection it never speaks on. It outlives us, so mostly it is there. Whether it moves is
told by its pulse, as a shim's is: one that is stopped is continued; one that hangs is killed, which harms nobody, while
as long as it hangs no shim that dies gets a successor, and nobody else can raise one.
"""

import logging
import os
import signal
import socket
import time

import trio

from daemon import procfs
from daemon.config import DEFAULT_RUNTIME, Config, Wedged
from daemon.shims import launch
from ttrpc.api import pulse, wedge
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
SLOWEST_LOOK_S = 2.5


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
            await watch(await launch.ensure_keeper(program, ENSURE_S), config.wedged)
            why = "it has ended"
        except (StatusError, Unwatched) as error:
            why = str(error)
        if why != reason:
            log.warning("the keeper is started again", extra={"reason": why})
            reason = why
        lived_s = trio.current_time() - began
        pause_s = PAUSE_FIRST_S if lived_s > STEADY_S else min(2 * pause_s, PAUSE_MAX_S)
        await trio.sleep(pause_s)


async def watch(path: str, wedged: Wedged) -> None:
    """Wait for a keeper's end, or until it forks no more because its code is out of date; see that it moves.

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
        async with trio.open_nursery() as nursery:
            keeper = procfs.identify(int(answer[2])) if answer[2].isdigit() else None
            if keeper is not None and wedged.after_s:
                nursery.start_soon(_look_after, keeper, path, wedged)
            try:
                await connection.recv(1)
            except OSError:
                pass  # it ended
            nursery.cancel_scope.cancel()


async def _look_after(keeper: procfs.Identity, path: str, config: Wedged) -> None:
    """Look at its pulse again and again. A container is never touched, nor is a shim."""
    folder, name = os.path.split(path)
    limits = wedge.Limits(config.after_s, config.grace_s)
    case: wedge.Case | None = None
    while True:
        found = pulse.look(folder, keeper.pid, time.monotonic_ns(), name + pulse.OF_KEEPER)
        if found.start_ticks != keeper.start_ticks:
            return
        if case is None:
            case = wedge.Case(found)
        action = case.judge(found, limits, stall_percent=pulse.memory_stall_percent())
        said = {"pid": keeper.pid, "reason": case.words()}
        if action in (wedge.REPORT, wedge.CONTINUE):
            log.error("the keeper is wedged", extra={**said, "stack": pulse.where_in_kernel(keeper.pid)})
            if action == wedge.CONTINUE:
                procfs.kill(keeper, signal.SIGCONT)
        elif action == wedge.REPLACE and config.is_replaced:
            log.error("killing a keeper that hangs; its shims get another", extra=said)
            procfs.kill(keeper)
        elif action == wedge.RECOVERED:
            log.info("the keeper moves again", extra={"pid": keeper.pid})
        await trio.sleep(min(SLOWEST_LOOK_S, config.after_s / 2))
