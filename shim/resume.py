"""The code that goes on where other code stopped in this process, and the dry run in which it shows that it could.

Both are executed by the old code's text: see handover.py, upgrading.py.
"""

import json
import os
import signal

from shim import faults
from shim.core import kernel
from shim.params import Params
from shim.upgrade import carriedcalls, handover
from shim.upgrade.handover import copy
from shim.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.serving.parts import Parts


def main(fd: int, words: "list[str]") -> int:
    """Go on, and serve to the end; ``words``: why other code could not, which we are back from. Blocks.

    Raises: whatever hinders it, with everything as it was: then the old code takes over again.
    """
    from shim.core.shimlog import ShimLog
    from shim.recovery.spares import LISTENER, LOCK, KeeperLink
    from shim.serving.serve import Shim, run
    from shim.upgrade.relief import Relief
    from shim.upgrade.upgrading import drop_ballast

    carried = handover.read(fd)
    carried["failed"] = words[0] if words else ""
    params = read_params(carried)
    kernel.name_process(f"shim:{params.id}", f"shim:{params.id} -namespace {params.namespace}")  # at once: it is one
    faults.arm(params.environment)
    faults.point("upgrade.executed")
    log = ShimLog(params.bundle, params.id, debug=params.debug)
    # Copies are used, so that the fds themselves are there for the way back.
    named = {**carried["spares"], LISTENER: -1, LOCK: -1}
    spares = {name: copy(spare) for name, spare in named.items()}
    link = KeeperLink(copy(carried["keeper"]), spares, lock_fd=copy(carried["lock"]), is_raised=True, carried=carried)
    try:
        shim = Shim(copy(carried["listener"]), params, log, link)
        faults.point("upgrade.restored")
    except BaseException as error:
        log.failure(f"version {VERSION} cannot go on in place", error)
        raise
    try:
        clients = (carried.get("clients") or {}).get("fds", ())
        held = {carried["listener"], carried["lock"], carried["keeper"], *carried["spares"].values(), *clients}
        for each in {fd, *held} - {-1}:
            os.close(each)
        drop_ballast(shim.loop, carried["ballast"])
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        shim.reaper.reap()  # who ended meanwhile
        faults.point("upgrade.thawed")
        log.info(f"version {carried['from_version']} went on as {VERSION} {carried['failed'] and '(back)'}".strip())
        Relief(shim).begin()
        run(shim, log)
        return 0
    except BaseException as error:  # noqa: BLE001 - there is no way back any more
        log.failure("after an upgrade", error)
        os._exit(1)


def read_params(carried: "dict[str, Any]") -> Params:
    """How the shim was invoked; what this release does not know of it is left out."""
    return Params(**{name: value for name, value in carried["params"].items() if name in Params.__slots__})


# --- the dry run


def check(fd: int) -> int:
    """Read all that `main` would, change nothing, and print what was found; the exit code. Blocks."""
    try:
        os.write(
            1,
            json.dumps(
                {"version": VERSION, "found": look(handover.read(fd)), "carries": carriedcalls.VERSION, "lifts": 1}
            ).encode(),
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace"))
        return 1
    return 0


def look(carried: "dict[str, Any]") -> str:
    """What is found. Raises: whatever cannot be read."""
    from shim.bundle import STATE_VERSION, Bundle, read_file
    from shim.keeper.code import our_modules
    from shim.recovery import takeover
    from shim.serving import journal

    for name in our_modules():
        __import__(name)
    params = read_params(carried)
    bundle = Bundle(params.bundle)
    try:
        frames = journal.scan(read_file(bundle.file("journal"), journal.FILE_MAX_BYTES * 2))[0]
    except FileNotFoundError:
        frames = []
    if not carried["has_task"]:
        return "no container yet"
    raw = json.loads(read_file(bundle.file("state.json")))
    if raw.get("version") != STATE_VERSION:
        raise ValueError(f"the state is of version {raw.get('version')}; {VERSION} reads {STATE_VERSION}")
    container = takeover.restore(_parts(params, bundle, raw), raw, is_check=True)
    return f"container {container.state}, {len(container.execs)} execs, {len(frames)} records in the journal"


def _parts(params: Params, bundle: "Any", state: "dict[str, Any]") -> "Parts":
    """As much of a shim as reading takes."""
    from shim.serving.parts import Parts
    from shim.task.exits import ExitStore

    class Log:
        """Its complaints are about what is going to be refused."""

        def warning(self, words: str) -> None:
            raise ValueError(words)

        error = warning

    nothing: Any = None
    silent: Any = Log()
    return Parts(
        params, loop=nothing, reaper=nothing, bundle=bundle, journal=nothing, exits=ExitStore(bundle.exits_dir),
        log=silent, boot_id=str(state["boot_id"]), incarnation=str(state["incarnation"]), make_stdio=nothing,
        find_cgroup=nothing, watch_oom=nothing,
    )  # fmt: skip
