"""Out of memory: told before the exit it caused, and marked in the exit record."""

import os

from tests.support.shimbox import ShimBox
from ttrpc.api import runc

LIMIT_BYTES = 16 << 20
# dd's buffer is one write of this size: more than the limit, so the cgroup runs out at once.
HOG = ("dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
# A runtime that is so slow to return that what it started is dead by then. It is run in the bundle.
SLOW = """#!/bin/sh
runc "$@"
code=$?
for word; do
    case $word in
        {verb}) pid=$(cat {pid_file}) ;;
        *) continue ;;
    esac
    while [ -e /proc/$pid ] && ! grep -q ") Z " /proc/$pid/stat; do sleep 0.01; done
done
exit $code
"""


def slow_runtime(box: ShimBox, verb: str, pid_file: str) -> runc.Options:
    path = os.path.join(box.folder, "slow")
    with open(path, "w", encoding="ascii") as file:
        file.write(SLOW.format(verb=verb, pid_file=pid_file))
    os.chmod(path, 0o755)
    return runc.Options(binary_name=path, root=box.runc_root)


def test_oom_kill_of_init_is_told_before_its_exit() -> None:
    with ShimBox(HOG) as box:
        box.spec["linux"]["resources"] = {"memory": {"limit": LIMIT_BYTES, "swap": LIMIT_BYTES}}
        box.create()
        box.start()

        assert box.wait().exit_status == 137
        records = box.events("/tasks/exit")
        assert [record.topic for record in records][-2:] == ["/tasks/oom", "/tasks/exit"]
        assert records[-1].exit.oom


def test_oom_kill_of_an_exec_is_told_and_the_container_goes_on() -> None:
    with ShimBox() as box:
        box.spec["linux"]["resources"] = {"memory": {"limit": LIMIT_BYTES, "swap": LIMIT_BYTES}}
        box.create()
        box.start()

        assert box.run_exec("hog", HOG).exit_status == 137
        records = box.events("/tasks/exit")
        assert [record.topic for record in records][-2:] == ["/tasks/oom", "/tasks/exit"]
        assert (records[-1].exit.exec_id, records[-1].exit.oom) == ("hog", True)
        assert box.run_exec("fine", ["true"]).exit_status == 0
        box.kill(9)
        box.wait()


def test_oom_kill_during_the_start_is_told_after_it() -> None:
    with ShimBox(HOG) as box:
        box.spec["linux"]["resources"] = {"memory": {"limit": LIMIT_BYTES, "swap": LIMIT_BYTES}}
        box.create(options=slow_runtime(box, "start", "init.pid"))
        box.start()

        assert box.wait().exit_status == 137
        topics = [record.topic for record in box.events("/tasks/exit")]
        assert topics == ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit"]


def test_oom_kill_during_the_start_of_an_exec_is_told_after_it() -> None:
    with ShimBox() as box:
        box.spec["linux"]["resources"] = {"memory": {"limit": LIMIT_BYTES, "swap": LIMIT_BYTES}}
        box.create(options=slow_runtime(box, "exec", "execs/hog.pid"))
        box.start()

        assert box.run_exec("hog", HOG).exit_status == 137
        topics = [record.topic for record in box.events("/tasks/exit")]
        assert topics[-4:] == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/oom", "/tasks/exit"]
        box.kill(9)
        box.wait()
