"""`shimctl shim stack`: where a shim is right now, also one that answers nobody."""

import argparse
import signal
import time

from daemon.ctl.bundles import find
from daemon.ctl.commands import Command
from daemon.ctl.errors import CtlError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from daemon.identity import Identity

WRITTEN_S = 2.0  # a shim that can run at all has written its stack by then
PAUSE_S = 0.02


def stack(args: argparse.Namespace) -> int:
    """`shimctl shim stack`: state and pulse, the Python stack if it can give one, else where it hangs in the kernel."""
    from daemon import identity
    from daemon.ctl.doctor.facts import read_bundle
    from ttrpc.api import pulse

    bundle = find(args, args.id)
    found = read_bundle((bundle.namespace, bundle.container_id), bundle.path, identity.boot_id())
    if found.shim is None or not found.has_shim:
        raise CtlError(f"{args.id} has no shim that lives", hint="shimctl doctor says what that means, and what to do")
    print(describe(pulse.look(bundle.path, found.shim.pid, time.monotonic_ns())))
    text = python_stack(found.shim, bundle.path)
    print(text or pulse.where_in_kernel(found.shim.pid) or "nothing tells where it is")
    return 0


def describe(look: "object") -> str:
    """What a look at a shim shows, in a line. Pure."""
    from ttrpc.api.pulse import Look

    assert isinstance(look, Look)
    if look.busy_since_ns is None:
        told = "it has no pulse"
    elif look.busy_since_ns == 0:
        told = f"it waits for something to do, after {look.turns} turns"
    else:
        told = f"it is in turn {look.turns} for {(look.at_ns - look.busy_since_ns) / 1e9:.3f} s"
    return f"shim {look.pid}, state {look.state}: {told}"


def python_stack(shim: "Identity", path: str) -> str:
    """Have it write its stack into its log, and read it there; empty when it does not, or logs elsewhere.

    Blocks: WRITTEN_S at most.
    """
    from daemon import identity
    from ttrpc.api import pulse

    if not pulse.catches_usr1(shim.pid):
        return ""
    offset = pulse.log_end(path)
    identity.kill(shim, signal.SIGUSR1)
    ends_at, text = time.monotonic() + WRITTEN_S, ""
    while time.monotonic() < ends_at:
        time.sleep(PAUSE_S)
        found = pulse.stack_since(path, offset)
        if found and found == text:  # nothing more has come
            break
        text = found
    return text


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")


STACK = Command(
    stack,
    description="""\
Where a shim is right now: its state, how long the present turn of its loop has taken, and its Python stack, which it
writes into its log when it gets SIGUSR1, also in an endless loop. Of one that is stopped, or hangs in the kernel: where
there. It works with the daemon down, and harms nothing.
""",
    examples="  shimctl shim stack web\n",
    options=_options,
)
