"""What a daemon writes on the stdin of `start`: an Any of runtime options, or containerd 2.3's BootstrapParams.

Read without protobuf, which only the serving process needs: `start` is to be quick.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

OPTIONS_URL = b"containerd.runc.v1.Options"


class Bootstrap:
    """What was understood of it; empty where nothing was said."""

    __slots__ = ("events_address", "shim_cgroup", "socket_dir")

    def __init__(self, *, shim_cgroup: str = "", events_address: str = "", socket_dir: str = "") -> None:
        self.shim_cgroup = shim_cgroup
        self.events_address = events_address
        self.socket_dir = socket_dir


def read_bootstrap(stdin: bytes, container_id: str, namespace: str) -> Bootstrap:
    """Either form, told apart as containerd's own shim does: only the new one repeats id and namespace. Pure.

    What is neither is ignored: the next daemon will send something else again.

    containerd.runtime.bootstrap.v1.BootstrapParams: 1 instance_id, 2 namespace, 5 containerd_ttrpc_address,
    8 extensions (each 1 value, an Any), 9 socket_dir.
    """
    first = wire_fields(stdin)
    if not container_id or first.get(1) != container_id.encode() or first.get(2) != namespace.encode():
        return Bootstrap(shim_cgroup=_shim_cgroup(stdin))
    extensions = [wire_fields(value).get(1, b"") for number, value in each_field(stdin) if number == 8]
    return Bootstrap(
        shim_cgroup=next(filter(None, map(_shim_cgroup, extensions)), ""),
        events_address=_text(first, 5),
        socket_dir=_text(first, 9),
    )


def _shim_cgroup(options: bytes) -> str:
    """Field 3 of the runc options in an Any; empty for any other Any."""
    fields = wire_fields(options)
    if fields.get(1, b"").rsplit(b"/", 1)[-1] != OPTIONS_URL:
        return ""
    return _text(wire_fields(fields.get(2, b"")), 3)


def _text(fields: "dict[int, bytes]", number: int) -> str:
    return fields.get(number, b"").decode(errors="replace")


def wire_fields(data: bytes) -> "dict[int, bytes]":
    """The length-delimited fields of a protobuf message by number, the last of each. Pure."""
    return dict(each_field(data))


def each_field(data: bytes) -> "Iterator[tuple[int, bytes]]":
    """The length-delimited fields of a protobuf message in order; others are skipped, damage ends it. Pure."""
    at = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            kind = tag & 7
            if kind == 0:
                _value, at = _varint(data, at)
            elif kind == 2:
                length, at = _varint(data, at)
                yield tag >> 3, data[at : at + length]
                at += length
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                break
    except IndexError:
        pass


def _varint(data: bytes, at: int) -> "tuple[int, int]":
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
