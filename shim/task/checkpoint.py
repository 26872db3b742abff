"""Checkpoint: criu, driven by the runtime, writes the container's memory to a directory."""

import os

from shim.bundle import read_file, remove, write_replacing
from shim.task import runc
from ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.core.steps import Handler
    from shim.task.container import Container
    from ttrpc.api.runc import CheckpointOptions

CRIU_LOG_MAX_BYTES = 16 * 1024 * 1024


def checkpoint(container: "Container", path: str, options: "CheckpointOptions") -> "Handler":
    """Write the container to ``path``; it runs on unless the options say that it shall exit.

    criu works in the directory the options name, or in one of its own, which is removed; its log of a failure is kept
    as `criu-dump.log` in the bundle. Raises: UNKNOWN with criu's words.
    """
    container.require("checkpoint")
    yield from container.lock.acquire()
    try:
        container.require("checkpoint")
        work = options.work_path or os.path.join(_work_dir(container), "criu-work")
        arguments = runc.checkpoint_arguments(path, options, work)
        try:
            yield from container.runc.call(
                container.parts.reaper, "checkpoint", *arguments, container.id, deadline_s=runc.CHECKPOINT_S
            )
        except StatusError as error:
            kept = _keep_log(container, work)
            words = error.message.partition("\n")[0] + f" (criu's log: {kept})" if kept else error.message
            raise StatusError(error.code, words) from None
        finally:
            if not options.work_path:
                _remove_flat(work)
    finally:
        container.lock.release()


def _work_dir(container: "Container") -> str:
    """The directory containerd gives every bundle for this, on a real disk; where it gave none, the bundle."""
    work = container.parts.bundle.file("work")
    return work if os.path.isdir(work) else container.parts.bundle.path


def _keep_log(container: "Container", work: str) -> str:
    """Copy what criu logged to where it is looked for; its path, or nothing when criu did not come so far."""
    kept = container.parts.bundle.file("criu-dump.log")
    try:
        write_replacing(kept, read_file(os.path.join(work, "dump.log"), CRIU_LOG_MAX_BYTES))
    except (OSError, ValueError):
        return ""
    return kept


def _remove_flat(path: str) -> None:
    """criu makes files there and no directories."""
    try:
        for name in os.listdir(path):
            remove(os.path.join(path, name))
        os.rmdir(path)
    except OSError:
        pass
