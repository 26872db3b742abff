"""Staying with a process: find its shim, attach, pump, and turn how that ended into an exit code."""

import os

from daemon.ctl import exits
from daemon.ctl.client import SHIMD, say
from daemon.ctl.errors import CtlError
from daemon.ctl.fifosession import FifoSession
from daemon.ctl.pump import EXITED, FORCED, LOST, Pump
from daemon.ctl.session import Session
from daemon.ctl.terminal import RawTerminal, parse_detach_keys
from ttrpc.api import shimd
from ttrpc.errors import StatusError
from ttrpc.status import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from daemon.ctl.client import Daemon
    from daemon.ctl.fifos import Fifos
    from daemon.ctl.pump import Ending


def find_shim(daemon: "Daemon", container_id: str) -> "shimd.ShimRecord | None":
    """What the daemon knows of the container's shim; None without a task, which has none."""
    try:
        reply = daemon.call(SHIMD, "Shims", shimd.ShimsRequest(container_id=container_id))
    except StatusError as error:
        if error.code == Code.NOT_FOUND:
            return None
        raise
    return next((record for record in reply.shims if record.container_id == container_id), None)


def shim_address(daemon: "Daemon", container_id: str) -> str:
    """Where the container's shim listens, as the daemon knows it.

    Raises: CtlError when the container has no shim.
    """
    found = find_shim(daemon, container_id)
    if found is not None and found.address:
        return str(found.address).removeprefix("unix://")
    raise CtlError(f"{container_id} has no shim: it has no task", hint=f"shimctl start {container_id}")


def attach(
    daemon: "Daemon",
    container_id: str,
    exec_id: str = "",
    *,
    stdin: bool,
    terminal: bool,
    detach_keys: str = "",
    backpressure: bool = True,
    forward_signals: bool = True,
    replay_bytes: int = 0,
    fifos: "Fifos | None" = None,
) -> Pump:
    """A session with a process of the container; `open` it before the process starts.

    ``fifos``: its streams are these, and its shim is not ours.
    """
    keys = parse_detach_keys(detach_keys) if terminal and stdin else b""
    if fifos is not None:
        return FifoSession(
            shim_address(daemon, container_id),
            container_id,
            exec_id,
            fifos.stdio,
            fifos.take_outputs(),
            metadata=daemon.metadata,
            stdin=stdin,
            detach_keys=keys,
            forward_signals=forward_signals,
        )
    return Session(
        shim_address(daemon, container_id),
        container_id,
        exec_id,
        metadata=daemon.metadata,
        stdin=stdin,
        terminal=terminal,
        backpressure=backpressure,
        forward_signals=forward_signals,
        detach_keys=keys,
        replay_bytes=replay_bytes,
    )


def pump(session: Pump) -> "Ending":
    """Run a session, with our terminal raw when the process has a terminal and our input."""
    if session.terminal and session.has_stdin and os.isatty(0):
        with RawTerminal(0):
            return session.run()
    return session.run()


def code_of(daemon: "Daemon", ending: "Ending", container_id: str, exec_id: str = "") -> int:
    """The exit code of a process whose stream has ended; when the stream was lost, the daemon is asked."""
    name = exec_id or container_id
    if ending.kind == EXITED:
        assert ending.record is not None
        return exits.answer(exits.exit_code(ending.record), name)
    what = "lost the shim of" if ending.kind == LOST else "cut off from"
    say(f"{what} {container_id} ({ending.reason}); asking the daemon how {name} ends")
    return exits.answer(exits.wait_for(daemon, container_id, exec_id), name)


def tell_running_on(container_id: str, ending: "Ending") -> None:
    """We leave, the container stays: say so, and how to deal with it."""
    why = "gave up waiting" if ending.kind == FORCED else "nobody reads our output any more"
    say(f"{why}; {container_id} runs on: shimctl attach {container_id}, shimctl stop {container_id}")
