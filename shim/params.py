"""How a shim was invoked, as a value. Imports next to nothing: `start` and `delete` are to be quick."""

import os

TYPE_CHECKING = False

DEFAULT_SOCKET_DIR = "/run/containerd/s"


class Params:
    """How this shim was invoked. Read from argv and environment in __main__ only."""

    __slots__ = (
        "address", "bundle", "debug", "environment", "events_address", "id", "namespace", "publish_binary",
        "shim_cgroup", "socket_dir", "socket_path",
    )  # fmt: skip

    def __init__(
        self,
        *,
        namespace: str,
        id: str,  # noqa: A002 - containerd's own word for it
        address: str = "",
        bundle: str = "",
        socket_path: str = "",
        publish_binary: str = "",
        events_address: str = "",
        socket_dir: str = DEFAULT_SOCKET_DIR,
        shim_cgroup: str = "",
        debug: bool = False,
        environment: "dict[str, str] | None" = None,
    ) -> None:
        self.namespace = namespace
        self.id = id
        self.address = address
        self.bundle = bundle
        self.socket_path = socket_path
        self.publish_binary = publish_binary
        self.events_address = events_address  # where containerd takes events; empty: nowhere, they are followed
        self.socket_dir = socket_dir
        self.shim_cgroup = shim_cgroup
        self.debug = debug
        self.environment = environment or {}


def socket_path(socket_dir: str, address: str, namespace: str, container_id: str) -> str:
    """Where this shim listens: containerd's own formula, so that `ctr shim` finds it. Pure."""
    return os.path.join(socket_dir, _sha256(os.path.normpath(f"{address}/{namespace}/{container_id}").encode()))


def _sha256(data: bytes) -> str:
    """hashlib would load OpenSSL: megabytes and milliseconds for every shim."""
    for name in ("_sha256", "_sha2", "hashlib"):  # CPython up to 3.11, from 3.12, any Python
        try:
            module = __import__(name)
        except ImportError:
            continue
        return str(module.sha256(data).hexdigest())
    raise ImportError("this Python has no SHA-256")
