"""Message classes and services out of the committed descriptor sets; no generated Python.

Two sets: ``shim.binpb`` is all a shim ever touches; ``daemon.binpb`` holds the daemon's services on top and is read
only when a name of its packages is asked for. Classes are made on first use. The pool is our own, so that no
``*_pb2`` module is imported: every message, the well-known types too, must come from here.
"""

import _thread
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from google.protobuf.descriptor import ServiceDescriptor
    from google.protobuf.message import Message

from google.protobuf import descriptor_pool, message_factory

_HERE = os.path.dirname(os.path.abspath(__file__))
_DAEMON_PREFIXES = (
    "containerd.services.version.",
    "containerd.services.introspection.",
    "containerd.services.namespaces.",
    "containerd.services.containers.",
    "containerd.services.tasks.",
    "containerd.services.events.v1",
    "containerd.v1.types",
    "containerd.types.Descriptor",
    "containerd.types.Platform",
    "containerd.types.Metric",
    "shimd.v1",
)

_pool = descriptor_pool.DescriptorPool()
_loaded: set[str] = set()
_loading = _thread.allocate_lock()  # `threading` would be 0.2 MB in each shim
_classes: "dict[str, type[Message]]" = {}


def _load(name: str) -> None:
    """Add one descriptor set to the pool, once.

    Raises: FileNotFoundError when the installation lacks its data file: run `make proto`.
    """
    if name in _loaded:
        return
    with _loading:
        if name in _loaded:
            return
        with open(os.path.join(_HERE, name), "rb") as file:
            raw = file.read()
        for item in _file_descriptors(raw):
            _pool.AddSerializedFile(item)
        _loaded.add(name)  # last: another thread looks here first


def _file_descriptors(raw: bytes) -> "list[bytes]":
    """Split a FileDescriptorSet (field 1, repeated message) without importing descriptor_pb2's classes."""
    files, at = [], 0
    while at < len(raw):
        if raw[at] != 0x0A:  # field 1, length-delimited
            raise ValueError("descriptor set is damaged; run `make proto`")
        at += 1
        length = shift = 0
        while True:
            byte = raw[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        files.append(raw[at : at + length])
        at += length
    return files


def _load_for(full_name: str) -> None:
    _load("shim.binpb")
    if full_name.startswith(_DAEMON_PREFIXES):
        _load("daemon.binpb")


def message_class(full_name: str) -> "type[Message]":
    """The class of a message by its full protobuf name, such as ``containerd.task.v2.StateRequest``.

    Raises: KeyError for a name in neither set.
    """
    found = _classes.get(full_name)
    if found is None:
        _load_for(full_name)
        found = _classes[full_name] = message_factory.GetMessageClass(_pool.FindMessageTypeByName(full_name))
    return found


def make_shim_classes() -> None:
    """Make every class of ``shim.binpb`` now: for a process that is about to fork many that would make them each."""
    _load("shim.binpb")
    with open(os.path.join(_HERE, "shim.binpb"), "rb") as file:
        files = _file_descriptors(file.read())
    # A FileDescriptorProto begins with its name (field 1), which is shorter than 128 bytes.
    names = [raw[2 : 2 + raw[1]].decode() for raw in files]
    message_factory.GetMessageClassesForFiles(names, _pool)


def service_descriptor(full_name: str) -> "ServiceDescriptor":
    """The descriptor of a service by its full protobuf name, such as ``containerd.task.v2.Task``.

    Raises: KeyError for a name in neither set.
    """
    _load_for(full_name)
    return _pool.FindServiceByName(full_name)


def module_getattr(package: str, module: str) -> "Callable[[str], Any]":
    """A module's ``__getattr__`` that finds the package's messages, enums and enum values by bare name."""

    def __getattr__(name: str) -> "Any":
        if name.startswith("__"):
            raise AttributeError(name)
        full_name = f"{package}.{name}"
        _load_for(full_name)
        found: Any
        try:
            found = message_factory.GetMessageClass(_pool.FindMessageTypeByName(full_name))
        except KeyError:
            found = _enum_or_value(package, name)
        if found is None:
            raise AttributeError(f"{package} has no message, enum or enum value {name}")
        import sys

        setattr(sys.modules[module], name, found)
        return found

    return __getattr__


def _enum_or_value(package: str, name: str) -> "Any":
    """An enum (as a mapping of names to numbers) or one of a package's top-level enum values."""
    from google.protobuf.internal import enum_type_wrapper

    try:
        return enum_type_wrapper.EnumTypeWrapper(_pool.FindEnumTypeByName(f"{package}.{name}"))
    except KeyError:
        pass
    # Values of a top-level enum are siblings of the enum in protobuf's naming.
    for file_name in _ENUM_FILES.get(package, ()):
        for enum in _pool.FindFileByName(file_name).enum_types_by_name.values():
            if name in enum.values_by_name:
                return enum.values_by_name[name].number
    return None


_ENUM_FILES = {
    "containerd.task.v2": ("task.proto",),
    "containerd.v1.types": ("process.proto",),
    "shimd.shim.v1": ("shim.proto",),
    "shimd.v1": ("shimd.proto",),
}
