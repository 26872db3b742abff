"""Services from their protobuf descriptors: method tables for callers, a registry of handlers for callees."""

from ttrpc.envelope import request_prefix
from ttrpc.errors import LocalMisuse, StatusError
from ttrpc.status import Code
from ttrpc.streams import REQUEST_CLOSED, REQUEST_OPEN, REQUEST_UNARY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from google.protobuf.descriptor import ServiceDescriptor
    from google.protobuf.message import Message


class Method:
    """One rpc: its names, its message classes, and which sides stream.

    ``shape`` is what its Request's flags must say; ``prefix`` the encoded names every Request of it begins with.
    """

    __slots__ = ("client_streaming", "input", "name", "output", "prefix", "server_streaming", "service", "shape")

    def __init__(
        self,
        service: str,
        name: str,
        input: "type[Message]",  # noqa: A002 - protobuf's own word for it
        output: "type[Message]",
        client_streaming: bool,
        server_streaming: bool,
    ) -> None:
        self.service = service
        self.name = name
        self.input = input
        self.output = output
        self.client_streaming = client_streaming
        self.server_streaming = server_streaming
        self.prefix = request_prefix(service, name)
        self.shape = REQUEST_OPEN if client_streaming else REQUEST_CLOSED if server_streaming else REQUEST_UNARY

    @property
    def is_unary(self) -> bool:
        return self.shape is REQUEST_UNARY

    def __repr__(self) -> str:
        return f"<Method {self.service}/{self.name}>"


_tables: "dict[str, dict[str, Method]]" = {}


def methods(full_service_name: str) -> "dict[str, Method]":
    """The methods of a service by bare name; made once, from our descriptor pool unless it was declared.

    Raises: KeyError for a service in neither.
    """
    table = _tables.get(full_service_name)
    if table is None:
        from ttrpc.api.descriptors import service_descriptor

        table = declare(service_descriptor(full_service_name))
    return table


def declare(descriptor: "ServiceDescriptor") -> "dict[str, Method]":
    """Make a service of any descriptor pool known to `methods`, and so to every client and registry."""
    from google.protobuf import message_factory

    table = {
        method.name: Method(
            descriptor.full_name,
            method.name,
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
            method.client_streaming,
            method.server_streaming,
        )
        for method in descriptor.methods
    }
    _tables[descriptor.full_name] = table
    return table


def find_method(service: str, name: str) -> Method:
    """The method a caller names. Raises: LocalMisuse when it is in no descriptor."""
    try:
        return methods(service)[name]
    except KeyError:
        raise LocalMisuse(f"no descriptor has {service}/{name}") from None


class Registry:
    """Which object serves which service. Handlers are its attributes named like the rpcs."""

    __slots__ = ("_services",)

    def __init__(self) -> None:
        self._services: dict[str, dict[str, tuple[Method, Any]]] = {}

    def register(self, full_service_name: str, implementation: object) -> None:
        """Serve a service; an rpc without an attribute of its name is answered Unimplemented.

        Raises: LocalMisuse for a service that is served already, or whose handlers would serve nothing of it.
        """
        if full_service_name in self._services:
            raise LocalMisuse(f"{full_service_name} is registered already")
        served = {}
        for name, method in methods(full_service_name).items():
            handler = getattr(implementation, name, None)
            if handler is not None:
                served[name] = (method, handler)
        if not served:
            raise LocalMisuse(f"{implementation!r} has no handler for any method of {full_service_name}")
        self._services[full_service_name] = served

    def lookup(self, service: str, method: str) -> "tuple[Method, Any]":
        """Method and handler of a request. Raises: StatusError UNIMPLEMENTED, in containerd's words."""
        served = self._services.get(service)
        if served is None:
            raise StatusError(Code.UNIMPLEMENTED, f"service {service}")
        found = served.get(method)
        if found is None:
            raise StatusError(Code.UNIMPLEMENTED, f"method {method}")
        return found

    @property
    def services(self) -> "tuple[str, ...]":
        return tuple(self._services)


def parse(message_class: "type[Message]", payload: bytes, kind: int) -> "Message":
    """A message out of its bytes. Raises: StatusError of the given kind when they are no such message."""
    try:
        return message_class.FromString(payload)
    except _decode_error() as error:
        name = message_class.DESCRIPTOR.full_name
        raise StatusError(kind, f"the payload is no {name}: {error}") from None


def _decode_error() -> "type[Exception]":
    """Looked up only once something failed: the module is heavy for what it is."""
    from google.protobuf.message import DecodeError

    return DecodeError
