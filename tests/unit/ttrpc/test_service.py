"""Services from descriptors: method tables and the registry."""

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from ttrpc import service
from ttrpc.api import shim, task
from ttrpc.errors import LocalMisuse, StatusError
from ttrpc.service import Registry, declare, find_method, methods, parse
from ttrpc.status import Code
from ttrpc.streams import REQUEST_CLOSED, REQUEST_OPEN, REQUEST_UNARY

TASK = "containerd.task.v2.Task"


def test_methods_come_from_the_descriptor_once() -> None:
    table = methods(TASK)

    assert (table["State"].input, table["State"].output) == (task.StateRequest, task.StateResponse)
    assert len(table) == 17
    assert methods(TASK) is table


@pytest.mark.parametrize(
    ("name", "shape"), [("Info", REQUEST_UNARY), ("Follow", REQUEST_CLOSED), ("Attach", REQUEST_OPEN)]
)
def test_a_methods_shape_is_what_its_request_must_say(name: str, shape: str) -> None:
    assert find_method("shimd.shim.v1.Shim", name).shape == shape


def test_a_method_nobody_described_is_the_callers_bug() -> None:
    with pytest.raises(LocalMisuse):
        find_method(TASK, "Fly")
    with pytest.raises(LocalMisuse):
        find_method("no.such.Service", "Fly")


def test_a_service_of_another_pool_can_be_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_tables", dict(service._tables))
    file = descriptor_pb2.FileDescriptorProto(name="other.proto", package="other", syntax="proto3")
    file.message_type.add(name="M")
    file.service.add(name="S").method.add(name="Do", input_type=".other.M", output_type=".other.M")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    declare(pool.FindServiceByName("other.S"))

    assert find_method("other.S", "Do").prefix == b"\x0a\x07other.S\x12\x02Do"


class Half:
    """Serves one method of Task."""

    def State(self) -> None: ...  # noqa: N802


def test_lookup_finds_handlers_by_name_and_says_what_is_missing() -> None:
    registry, half = Registry(), Half()
    registry.register(TASK, half)

    assert registry.lookup(TASK, "State") == (methods(TASK)["State"], half.State)
    for asked, words in ((("no.Such", "State"), "service no.Such"), ((TASK, "Kill"), "method Kill")):
        with pytest.raises(StatusError, match=f"^{words}$") as missing:
            registry.lookup(*asked)
        assert missing.value.code == Code.UNIMPLEMENTED
    assert registry.services == (TASK,)


def test_a_registration_that_serves_nothing_or_twice_is_a_bug() -> None:
    registry = Registry()
    registry.register(TASK, Half())

    with pytest.raises(LocalMisuse, match="already"):
        registry.register(TASK, Half())
    with pytest.raises(LocalMisuse, match="no handler"):
        registry.register("shimd.shim.v1.Shim", Half())


def test_a_payload_that_is_no_message_gets_the_kind_of_the_border_it_came_over() -> None:
    assert parse(shim.InfoResponse, b"\x0a\x01x", Code.INTERNAL) == shim.InfoResponse(version="x")
    with pytest.raises(StatusError, match=r"is no shimd\.shim\.v1\.InfoResponse") as damaged:
        parse(shim.InfoResponse, b"\x0a\xff", Code.INTERNAL)
    assert damaged.value.code == Code.INTERNAL
