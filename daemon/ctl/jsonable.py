"""Protobuf messages as plain values for JSON: times as RFC 3339, enums by name, Any unpacked when its type is known.

Our own because protobuf's json_format knows only the default pool, and ours is another.
"""

import base64
import json

from daemon.ctl.units import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import Message


def jsonable(message: "Message") -> "Any":
    """A message as dicts, lists and scalars: fields that are set, by their protobuf names."""
    name = message.DESCRIPTOR.full_name
    if name == "google.protobuf.Timestamp":
        from ttrpc.api import wkt

        return rfc3339(wkt.nanoseconds(message)) or None  # type: ignore[arg-type]
    if name == "google.protobuf.Any":
        return unpack(message)
    made: dict[str, Any] = {}
    for field, value in message.ListFields():
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            inner = entry.fields_by_name["value"]
            made[field.name] = {str(key): _scalar(inner, value[key]) for key in sorted(value)}
        elif hasattr(value, "extend"):  # asked of the value: runtimes differ in how a descriptor says "repeated"
            made[field.name] = [_scalar(field, item) for item in value]
        else:
            made[field.name] = _scalar(field, value)
    return made


def unpack(packed: "Any") -> "Any":
    """The content of an Any with its type under "@type"; a type we do not know keeps its bytes in base64."""
    found = decode(packed)
    if found is None:
        return {"@type": packed.type_url, "value": base64.b64encode(packed.value).decode()}
    if isinstance(found, (dict, list)):
        return found
    return {"@type": packed.type_url, **jsonable(found)}


def decode(packed: "Any") -> "Any":
    """The message in an Any, or the parsed JSON of OCI types; None when the type is not known or it is damaged."""
    from google.protobuf.message import DecodeError

    from ttrpc.api.descriptors import message_class

    name = packed.type_url.rpartition("/")[2] if packed.type_url.startswith("type.googleapis.com/") else packed.type_url
    try:
        if name.startswith("types.containerd.io/"):
            return json.loads(packed.value)
        return message_class(name).FromString(packed.value)
    except (KeyError, ValueError, DecodeError):
        return None


def _scalar(field: "FieldDescriptor", value: "Any") -> "Any":
    if field.message_type is not None:
        return jsonable(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value
