"""Making the socket again whose path somebody removed: who asks is whoever misses it.

The question is a signal, for there is no other way to reach us then: SIGURG, which harms no shim that does not know it.
"""

import os

from shim.actions.start import StartError, listen
from shim.keeper.looks import inode_of
from shim.recovery.spares import LISTENER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.serving.serve import Shim


def listen_again(shim: "Shim") -> None:
    """Have a new socket where the path is gone; one that is there, ours or another's, is left alone."""
    path = shim.params.socket_path
    if os.path.lexists(path):
        return
    try:
        with listen(path) as listener:
            shim.server.listen_on(listener)
    except (StartError, OSError) as error:
        shim.log.error(f"the socket is gone and cannot be made again: {error}")
        return
    shim.socket_inode = inode_of(path)
    shim.parts.spares.hold(LISTENER, shim.server.listener.fileno())
    shim.log.warning(f"the socket was gone and is made again: {path}")
