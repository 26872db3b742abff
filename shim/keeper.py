"""The keeper: has the shim's code in memory, and forks a shim in milliseconds for every `start` that asks.

It is the parent of its shims and the subreaper of their containers. Its own death harms nothing: shims and containers
go on, and the next `start` starts another keeper. Here is how it begins; what it does is in keeper_loop.py, what its
children do in keeper_child.py.
"""

import gc
import os
import sys

from shim import keeper_home
from shim.keeper_code import Edition, preload

LISTENER_FD = 3


def main() -> int:
    """Keep until told to end; or, in a child, be a shim. Blocks. See keeper_spawn.py for how this is called.

    Order: the files are noted before they are imported, the cgroup entered before memory is used, and every object a
    shim shares exists before the first fork: the collector is told to leave them, and so their pages, alone.
    """
    gc.disable()
    os.chdir("/")
    os.umask(0o022)
    edition = Edition()
    at_home = keeper_home.move_out(os.environ.get("SHIMD_KEEPER_CGROUP", keeper_home.NAME))
    preload()
    from shim import keeper_child
    from shim.keeper_loop import HANDLED, Forked, Keeper
    from shim.start import close_all_but

    edition.watch_borrowed()
    close_all_but({0, 1, 2, LISTENER_FD})
    keeper = Keeper(LISTENER_FD, sys.argv[1], edition)
    keeper.log.info(f"serving at {keeper.path} pid={os.getpid()}; {at_home}")
    gc.collect()
    gc.freeze()
    try:
        keeper.run()
    except Forked as forked:
        code = 1
        try:
            keeper_child.reset_signals(HANDLED)
            keeper.let_go()
            close_all_but({0, 1, 2, forked.connection.fileno()})
            code = keeper_child.become_shim(forked.request, forked.connection, forked.peer_pid, keeper.world)
        finally:
            os._exit(code)
    keeper.close()
    return 0
