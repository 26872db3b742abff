"""A keeper refuses nonsense that asks to be looked after, and has no more fds open for it."""

import json
import os
from typing import Any

import pytest

from shim import launch
from shim.keeper.adoption import check_identity, unpack_adoption
from shim.keeper.wire import BadRequest
from shim.params import Params


def request(body: str) -> bytes:
    return b"\0".join((launch.MAGIC, launch.ADOPT, body.encode()))


@pytest.mark.parametrize(
    "body",
    [
        "", "[]", "{}", "[" * 100_000, '{"params": {}}', '{"params": {"bundle": 1}, "state_version": 1}',
        '{"params": [], "state_version": 1}',
    ],
)  # fmt: skip
def test_nonsense_is_a_bad_request(body: str) -> None:
    with pytest.raises(BadRequest):
        unpack_adoption(request(body))


def test_a_listener_that_is_no_socket_is_refused_and_nothing_stays_open(tmp_path: Any) -> None:
    values: dict[str, Any] = dict.fromkeys(Params.__slots__, "")
    params = Params(**{**values, "bundle": str(tmp_path), "environment": {}, "debug": False})
    lock_fd = os.open(tmp_path, os.O_RDONLY)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="socket"):
        check_identity(params, os.getpid(), lock_fd, lock_fd)
    assert os.listdir("/proc/self/fd") == before
    os.close(lock_fd)


def test_what_a_newer_shim_adds_is_ignored() -> None:
    fields = {name: "" for name in Params.__slots__ if name not in ("environment", "debug")}
    body = {"state_version": 7, "params": {**fields, "environment": {}, "debug": False, "colour": "red"}, "more": 1}
    version, params = unpack_adoption(request(json.dumps(body)))
    assert (version, params.bundle, params.environment) == (7, "", {})
