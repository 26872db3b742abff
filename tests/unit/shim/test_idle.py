"""When a shim ends though nobody told it to."""

import os

import pytest

from shim import serve
from shim.keeper_rehearsal import ID, SERVICE, Stage
from ttrpc.api import shim, task


def test_a_shim_whose_container_was_deleted_ends_when_nobody_shuts_it_down(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """containerd died between Delete and Shutdown, and does not come back."""
    monkeypatch.setattr(serve, "DELETED_S", 0.02)
    bundle = os.path.join(str(tmp_path), "b")
    stage = Stage(bundle)
    try:
        stage.call("Create", task.CreateTaskRequest(id=ID, bundle=bundle))
        stage.call("Start", task.StartRequest(id=ID))
        stage.end_process()
        stage.call("Wait", task.WaitRequest(id=ID))
        stage.call("Delete", task.DeleteRequest(id=ID))
        stage.call("Ack", shim.AckRequest(seq=stage.shim.parts.journal.last_seq), SERVICE)
        stage.client.close()

        stage.shim.loop.run()
    finally:
        stage.close()
        stage.shim.log.close()

    with open(os.path.join(bundle, "shim.log"), encoding="utf-8") as log:
        assert "nothing to do for 0.02 s" in log.read()
    assert not os.path.exists(os.path.join(bundle, "socket"))
    with open(os.path.join(bundle, "ended"), "rb") as answer:
        assert answer.read().startswith(ID.encode())
