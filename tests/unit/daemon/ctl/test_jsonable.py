"""Messages as plain values."""

from daemon.ctl.jsonable import decode, jsonable
from ttrpc.api import containers, events, process, shim, wkt


def test_fields_are_named_as_in_protobuf_and_times_are_text() -> None:
    made = containers.Container(id="web", labels={"b": "2", "a": "1"}, created_at=wkt.timestamp(1_000_000_001))

    assert jsonable(made) == {
        "id": "web",
        "labels": {"a": "1", "b": "2"},
        "created_at": "1970-01-01T00:00:01.000000001Z",
    }


def test_enums_by_name_repeated_as_lists_bytes_in_base64() -> None:
    made = shim.ExitsResponse(exits=[shim.ExitRecord(source=shim.EXIT_SOURCE_WAITID, code=0)])

    assert jsonable(made) == {"exits": [{"code": 0, "source": "EXIT_SOURCE_WAITID"}]}
    assert jsonable(shim.LogRecord(data=b"\xff")) == {"data": "/w=="}


def test_never_is_null() -> None:
    assert jsonable(process.Process(id="a", exited_at=wkt.timestamp(None))) == {"id": "a", "exited_at": None}


def test_an_any_is_unpacked_when_its_type_is_known() -> None:
    packed = wkt.pack(events.TaskStart(container_id="web", pid=3))

    assert jsonable(packed) == {"@type": "containerd.events.TaskStart", "container_id": "web", "pid": 3}
    assert jsonable(wkt.any_of("types.containerd.io/opencontainers/runtime-spec/1/Spec", b'{"a":1}')) == {"a": 1}
    assert jsonable(wkt.any_of("type.googleapis.com/containerd.events.TaskOOM", b""))["@type"]


def test_a_foreign_or_damaged_any_keeps_its_bytes() -> None:
    assert jsonable(wkt.any_of("some.Type", b"x")) == {"@type": "some.Type", "value": "eA=="}
    assert decode(wkt.any_of("containerd.events.TaskStart", b"\xff\xff")) is None
    assert decode(wkt.any_of("types.containerd.io/x", b"{")) is None
