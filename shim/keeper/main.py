"""The keeper: has the shim's code in memory, and has a shim forked in milliseconds for every `start` that asks.

It is the parent of its shims and the subreaper of their containers. Its own death harms nothing: shims and containers
go on, and the next `start` starts another keeper. Here is how it begins; what it does is in keeper/keeper.py, and the
process shims are copied from in keeper/template.py.
"""

import gc
import os
import sys

from shim import faults
from shim.core import kernel
from shim.keeper import home
from shim.keeper.code import Edition, preload
from shim.keeper.memory import merge_equal_pages

TYPE_CHECKING = False

LISTENER_FD = 3


def main() -> int:
    """Keep until told to end. Blocks. See keeper/spawn.py for how this is called.

    Order: the files are noted before they are imported, and the cgroup is entered before memory is used.
    """
    gc.disable()
    os.chdir("/")
    os.umask(0o022)
    faults.arm(os.environ)
    edition = Edition()
    home.raise_fd_limit()
    words = home.move_out(os.environ.get("SHIMD_KEEPER_CGROUP", home.NAME))
    preload()
    from shim.actions.start import close_all_but
    from shim.core.shimlog import ShimLog
    from shim.keeper.keeper import Keeper
    from shim.keeper.peer import World

    edition.watch_borrowed()
    close_all_but({0, 1, 2, LISTENER_FD})
    kernel.become_subreaper()
    if os.environ.get("SHIMD_KEEPER_KSM") == "1":
        words += f"; {merge_equal_pages()}"
    gc.freeze()  # what is imported stays
    gc.enable()
    log = ShimLog(os.path.dirname(sys.argv[1]), f"keeper-{os.getpid()}", name="keeper.log")  # one for a directory
    log.info(f"serving at {sys.argv[1]} pid={os.getpid()}; {words}")
    try:
        keeper = Keeper(LISTENER_FD, sys.argv[1], edition, World("self"), log)
        keeper.run()
        keeper.close()
    except Exception as error:
        log.failure("the keeper ends by a bug", error)
        raise
    return 0
