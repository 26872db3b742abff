"""When a shim ends though nobody told it to."""

import os
import subprocess
import sys

from shim.keeper.rehearsal import ID

# A process of its own: a shim changes what it is in (subreaper, title).
DELETED = """
import sys
from shim.serving import serve
from shim.keeper.rehearsal import ID, SERVICE, Stage
from ttrpc.api import shim, task

serve.DELETED_S = 0.02
stage = Stage(sys.argv[1])
stage.call("Create", task.CreateTaskRequest(id=ID, bundle=sys.argv[1]))
stage.call("Start", task.StartRequest(id=ID))
stage.end_process()
stage.call("Wait", task.WaitRequest(id=ID))
stage.call("Delete", task.DeleteRequest(id=ID))
stage.call("Ack", shim.AckRequest(seq=stage.shim.parts.journal.last_seq), SERVICE)
stage.client.close()
stage.shim.loop.run()
stage.close()
"""


def test_a_shim_whose_container_was_deleted_ends_when_nobody_shuts_it_down(tmp_path: "os.PathLike[str]") -> None:
    """containerd died between Delete and Shutdown, and does not come back."""
    bundle = os.path.join(tmp_path, "b")

    done = subprocess.run([sys.executable, "-c", DELETED, bundle], capture_output=True, text=True, timeout=50)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with open(os.path.join(bundle, "shim.log"), encoding="utf-8") as log:
        assert "nothing to do for 0.02 s" in log.read()
    assert not os.path.exists(os.path.join(bundle, "socket"))
    with open(os.path.join(bundle, "ended"), "rb") as answer:
        assert answer.read().startswith(ID.encode())


FORSAKEN = """
import os, sys
from shim.serving import serve
from shim.keeper.rehearsal import ID, Stage
from ttrpc.api import task

serve.IDLE_S = 0.02
stage = Stage(sys.argv[1])
stage.call("Create", task.CreateTaskRequest(id=ID, bundle=sys.argv[1]))
stage.call("Start", task.StartRequest(id=ID))
stage.end_process()
stage.call("Wait", task.WaitRequest(id=ID))
os.rename(sys.argv[1], sys.argv[1] + ".gone")
stage.shim.loop.run()
os.rename(sys.argv[1] + ".gone", sys.argv[1])
stage.close()
"""


def test_a_shim_whose_bundle_was_removed_ends_with_its_container(tmp_path: "os.PathLike[str]") -> None:
    """`delete` was killed before it came to the shim, and the bundle is gone: nobody will come to delete the task."""
    bundle = os.path.join(tmp_path, "b")

    done = subprocess.run([sys.executable, "-c", FORSAKEN, bundle], capture_output=True, text=True, timeout=50)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with open(os.path.join(bundle, "shim.log"), encoding="utf-8") as log:
        assert "nothing to do for 0.02 s" in log.read()
