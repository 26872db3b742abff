"""Updates by field mask, as containerd's services take them. Pure."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from daemon.errors import invalid_argument

if TYPE_CHECKING:
    from google.protobuf.message import Message


def apply(target: "Message", source: "Message", paths: Iterable[str], allowed: Iterable[str]) -> None:
    """Copy what the paths name; ``labels.KEY`` (and other maps) by entry: absent or empty in the source removes it.

    Raises: InvalidArgument for a path that is not allowed to change.
    """
    permitted = tuple(allowed)
    for path in paths:
        name, dot, key = path.partition(".")
        if name not in permitted or (dot and not _is_map(target, name)) or (dot and not key):
            raise invalid_argument(f"update of {path!r} is not possible; fields that can be: {', '.join(permitted)}")
        if dot:
            _copy_entry(getattr(target, name), getattr(source, name), key)
        else:
            _copy_field(target, source, name)


def _is_map(message: "Message", name: str) -> bool:
    field = message.DESCRIPTOR.fields_by_name[name]
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _copy_entry(target: Any, source: Any, key: str) -> None:
    """One map entry; a key may itself hold dots, so all that follows the first one is the key."""
    if key not in source or source[key] == "":
        target.pop(key, None)
    elif hasattr(source[key], "CopyFrom"):
        target[key].CopyFrom(source[key])
    else:
        target[key] = source[key]


def _copy_field(target: Any, source: Any, name: str) -> None:
    target.ClearField(name)
    part = type(source)()
    field = source.DESCRIPTOR.fields_by_name[name]
    value = getattr(source, name)
    if _is_map(source, name):
        getattr(part, name).MergeFrom(value)
    elif field.message_type is not None:
        if source.HasField(name):
            getattr(part, name).CopyFrom(value)
    else:
        setattr(part, name, value)
    target.MergeFrom(part)
