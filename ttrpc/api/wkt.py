"""The well-known types of our own pool, and the conversions everybody needs."""

from ttrpc.api.descriptors import message_class

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

# Go's zero time.Time as protobuf seconds: how containerd says "not yet" (a missing timestamp reads as 1970 there).
GO_ZERO_SECONDS = -62135596800


def __getattr__(name: str) -> object:
    if name in ("Any", "Empty", "FieldMask", "Timestamp"):
        # FieldMask lives in the daemon's set; naming one of its messages loads it.
        if name == "FieldMask":
            message_class("containerd.services.containers.v1.Container")
        return message_class(f"google.protobuf.{name}")
    raise AttributeError(name)


def timestamp(at_ns: "int | None") -> "Timestamp":
    """Wall time in nanoseconds since 1970 as a Timestamp; None becomes Go's zero time."""
    made: Timestamp = message_class("google.protobuf.Timestamp")()  # type: ignore[assignment]
    if at_ns is None:
        made.seconds = GO_ZERO_SECONDS
    else:
        made.seconds, made.nanos = divmod(at_ns, 1_000_000_000)
    return made


def nanoseconds(stamp: "Timestamp") -> "int | None":
    """A Timestamp as nanoseconds since 1970; Go's zero time and an absent one become None."""
    if stamp.seconds == GO_ZERO_SECONDS or (stamp.seconds == 0 and stamp.nanos == 0):
        return None
    return stamp.seconds * 1_000_000_000 + stamp.nanos


def pack(message: "Message", type_url: "str | None" = None) -> "Any":
    """A message in an Any under its bare full name, as containerd's typeurl writes it (no ``type.googleapis.com/``)."""
    return any_of(type_url or message.DESCRIPTOR.full_name, message.SerializeToString())


def any_of(type_url: str, value: bytes) -> "Any":
    """An Any of these parts; JSON payloads travel so."""
    made: Any = message_class("google.protobuf.Any")()  # type: ignore[assignment]
    made.type_url = type_url
    made.value = value
    return made
