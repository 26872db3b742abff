"""What of clients' connections is carried over an upgrade, and what is too much of it."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from shim.upgrade import carriedcalls, handover
from ttrpc.errors import StatusError


class Connection:
    """As a plain one looks to who carries it."""

    def __init__(self, unsent: bytes, *, ledger: object = None) -> None:
        self.fd = 77
        self.ledger = ledger
        carry = lambda: {"opening": b"\x00\xff", "fds": [5]}  # noqa: E731
        self.calls = {1: SimpleNamespace(carry=carry), 3: SimpleNamespace(carry=None)}
        self._unsent = unsent

    def snapshot(self) -> dict[str, Any]:
        return {"unsent": self._unsent, "calls": [{"stream_id": 1}, {"stream_id": 3}]}


def shim(*connections: Connection) -> Any:
    return SimpleNamespace(server=SimpleNamespace(connections=connections))


def test_plain_connections_with_their_streams_and_fds() -> None:
    carried, fds = carriedcalls.carry(shim(Connection(b"\xf0later"), Connection(b"", ledger=object())))
    assert fds == {5, 77}
    (connection,) = carried["connections"]
    assert [call["carried"] for call in connection["calls"]] == [{"opening": b"\x00\xff", "fds": [5]}, None]
    fd = handover.write({"clients": carried})
    assert handover.read(fd)["clients"] == carried
    os.close(fd)


def test_too_much_is_refused() -> None:
    with pytest.raises(StatusError, match="clients have 67108866 bytes to read"):
        carriedcalls.carry(shim(Connection(bytes(carriedcalls.CARRIED_MAX_BYTES))))
