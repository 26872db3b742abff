"""The bundles below the state directory: which containers there are, and where their shims listen."""

import contextlib
import os

from daemon.ctl.errors import CtlError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

    from google.protobuf.message import Message

BUNDLES = "io.containerd.runtime.v2.task"
NAMESPACE_KEY = "containerd-namespace-ttrpc"
CALL_S = 30.0


class Bundle:
    """One container's directory: whose it is, and where its shim listens."""

    __slots__ = ("address", "container_id", "namespace", "path")

    def __init__(self, namespace: str, container_id: str, path: str) -> None:
        self.namespace = namespace
        self.container_id = container_id
        self.path = path
        self.address = read(os.path.join(path, "address")).strip().removeprefix("unix://")

    @property
    def is_foreign(self) -> bool:
        """Whether the daemon has prepared it for a shim that is not ours."""
        return os.path.exists(os.path.join(self.path, "shimd.incarnation"))

    def call(self, service: str, method: str, request: "Message", *, timeout_s: float | None = CALL_S) -> "Any":
        """One call to the shim.

        Raises: StatusError; CtlError when nothing listens there.
        """
        from daemon.ctl.fifosession import TASK_SERVICES, call_task
        from ttrpc.blocking import BlockingClient
        from ttrpc.errors import ConnectionLost

        metadata = {NAMESPACE_KEY: self.namespace}
        try:
            with BlockingClient.connect(self.address) as client:
                if service in TASK_SERVICES:
                    return call_task(client, method, request, timeout_s=timeout_s, metadata=metadata)
                return client.call(service, method, request, timeout_s=timeout_s, metadata=metadata)
        except (OSError, ConnectionLost) as error:
            raise CtlError(
                f"the shim of {self.container_id} does not answer at {self.address or 'an unknown address'}: "
                f"{getattr(error, 'strerror', None) or error}",
                hint="the container may run on without it; the daemon, when it is up, clears what is left",
            ) from None


def read(path: str) -> str:
    """A small file's text, empty when it is not there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def bundles(state: str, namespace: str | None = None) -> "Iterator[Bundle]":
    """Every bundle below the state directory, in order; hidden ones are being deleted.

    Raises: CtlError when it cannot be read.
    """
    root = os.path.join(state, BUNDLES)
    try:
        namespaces = sorted(os.listdir(root)) if namespace is None else [namespace]
        for name in namespaces:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for container_id in sorted(os.listdir(os.path.join(root, name))):
                    if not container_id.startswith("."):
                        yield Bundle(name, container_id, os.path.join(root, name, container_id))
    except FileNotFoundError:
        return
    except PermissionError:
        raise CtlError(f"permission denied on {root}", hint="run it as root: sudo shimctl …") from None


def find(args: "argparse.Namespace", container_id: str) -> Bundle:
    """The bundle of a container.

    Raises: CtlError when there is none.
    """
    path = os.path.join(args.state, BUNDLES, args.namespace, container_id)
    if not container_id or "/" in container_id or container_id.startswith(".") or not os.path.isdir(path):
        raise CtlError(
            f"no bundle of {container_id!r} in namespace {args.namespace!r} below {args.state}",
            hint="shimctl shim list lists them; another directory: --state DIR, another namespace: -n NAME",
        )
    return Bundle(args.namespace, container_id, path)
