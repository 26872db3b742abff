"""Out of memory: told before the exit it caused, and marked in the exit record."""

from tests.support.shimbox import ShimBox

LIMIT_BYTES = 16 << 20
# dd's buffer is one write of this size: more than the limit, so the cgroup runs out at once.
HOG = ("dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")


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
