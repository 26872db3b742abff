"""One command for several containers: each by itself, so that one that fails does not keep the others."""

from daemon.ctl.errors import CtlError, DaemonGone, sentence_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def for_each(names: "Sequence[str]", act: "Callable[[str], object]", *, quiet: bool = False) -> int:
    """Act on each name and print it; errors are told as they come. Returns 0 when all went well, else 1.

    Raises: DaemonGone at once: the others would wait for it in vain.
    """
    from daemon.ctl.__main__ import complain
    from ttrpc.errors import TtrpcError

    failures = 0
    for name in names:
        try:
            act(name)
        except DaemonGone:
            raise
        except (CtlError, TtrpcError, OSError) as error:
            failures += 1
            message, hint = sentence_of(error)
            complain(message if name in message else f"{name}: {message}", hint)
        else:
            if not quiet:
                print(name, flush=True)
    return 1 if failures else 0
