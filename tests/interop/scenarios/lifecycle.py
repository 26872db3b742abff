"""The order of things: create, start, exit, delete, and each of them at the wrong time."""

import json
import os
import signal

from tests.interop.play import FOREVER, Play
from tests.interop.scenario import scenario

SHELL = "/bin/sh"
NOBODY = "nobody"


@scenario(short=True)
def created_only(play: Play) -> None:
    """A task that was created and not started: its state, what it refuses, that it can be deleted."""
    play.create("c1")
    play.note_state("c1")
    play.ctr("list", "containers", "ls", "-q")
    play.tasks("Pause", container_id="c1")
    play.tasks("Resume", container_id="c1")
    play.tasks("ResizePty", container_id="c1", width=80, height=24)
    play.tasks("Create", "Create again", container_id="c1")
    play.note("processes", len(play.api.tasks("ListPids", container_id="c1").processes))
    play.tasks("Delete", container_id="c1")
    play.note_state("c1")
    play.tasks("Start", "Start what was deleted", container_id="c1")
    play.remove("c1")


@scenario()
def killed_before_start(play: Play) -> None:
    """A created task whose init is killed is stopped, cannot be started, and says what it died of."""
    play.create("c1")
    play.tasks("Kill", container_id="c1", signal=9)
    play.tasks("Wait", container_id="c1")
    play.note_state("c1")
    play.tasks("Start", container_id="c1")
    play.tasks("Delete", container_id="c1")
    play.remove("c1")


@scenario()
def died_before_start(play: Play) -> None:
    """The same when somebody else killed it: nobody asked the shim for anything."""
    play.create("c1")
    os.kill(play.pid_of("c1"), signal.SIGKILL)
    play.wait_stopped("c1")
    play.note_state("c1")
    play.tasks("Start", container_id="c1")
    play.tasks("Wait", container_id="c1")
    play.tasks("Delete", container_id="c1")
    play.remove("c1")


@scenario()
def died_while_being_created(play: Play) -> None:
    """A hook kills init in the middle of create: the create fails with runc's words, nothing stays."""
    script = (
        r"read state; pid=${state##*\"pid\":}; pid=${pid%%,*}; kill -9 $pid; "
        "until grep -q ') Z' /proc/$pid/stat; do :; done"
    )
    run_with_hook(play, "createRuntime", script, words="error during container init")


@scenario()
def a_hook_that_fails(play: Play) -> None:
    """A hook that says no: the create fails with its words, nothing stays."""
    run_with_hook(play, "createRuntime", "echo not today >&2; exit 3")


@scenario()
def a_start_hook_that_fails(play: Play) -> None:
    """A hook of start that says no: what runc then makes of the container."""
    run_with_hook(play, "startContainer", "exit 4")


def run_with_hook(play: Play, kind: str, script: str, words: str = "") -> None:
    """`ctr run -d` of a container with an OCI hook; runc has more than one way to say `words`."""
    spec = json.loads(play.box.ctr("oci", "spec").out)
    spec["root"] = {"path": play.box.rootfs}
    spec["process"].update(args=list(FOREVER), terminal=False)
    spec["linux"]["cgroupsPath"] = f"/{play.box.namespace}/c1"
    spec["hooks"] = {kind: [{"path": SHELL, "args": ["sh", "-c", script]}]}
    config = os.path.join(play.box.folder, "spec.json")
    with open(config, "w", encoding="utf-8") as file:
        json.dump(spec, file)
    play.box.ids.add("c1")
    fifos = ("--fifo-dir", play.box.fifo_dir)
    result = play.box.ctr("run", "--detach", "--runtime", play.runtime, *fifos, "--config", config, "c1")
    if words:
        play.note("run", result.exit)
        assert words in result.complaint
    else:
        play.note_result("run", result)
    play.note_state("c1")
    play.remove("c1")


@scenario(short=True)
def deleted_too_early_and_twice(play: Play) -> None:
    """Delete while running is refused; the second delete finds nothing."""
    play.start("c1")
    play.ctr("delete while running", "tasks", "rm", "c1")
    play.tasks("Delete", "Delete while running", container_id="c1")
    play.tasks("Start", "Start what runs", container_id="c1")
    play.note_state("c1")
    play.kill("c1")
    play.wait_stopped("c1")
    play.tasks("Start", "Start what has ended", container_id="c1")
    play.tasks("Delete", container_id="c1")
    play.tasks("Delete", "Delete again", container_id="c1")
    play.ctr("delete again", "tasks", "rm", "c1")
    play.remove("c1")


@scenario()
def deleted_by_force(play: Play) -> None:
    """`tasks rm --force` ends what runs and deletes it."""
    play.start("c1")
    play.ctr("delete by force", "tasks", "rm", "--force", "c1")
    play.note_state("c1")
    play.remove("c1")


@scenario()
def waits(play: Play) -> None:
    """Wait, before the start and after the exit, for what is there and for what is not."""
    play.create("c1", "/bin/false")
    early = play.client("tasks", "attach", "c1")  # waits before there is anything to wait for
    play.tasks("Start", container_id="c1")
    play.tasks("Wait", container_id="c1")
    play.tasks("Wait", "Wait again", container_id="c1")
    play.note("the early client's exit", early.finish().exit)
    play.tasks("Wait", "Wait for no exec", container_id="c1", exec_id=NOBODY)
    play.remove("c1")
    play.tasks("Wait", "Wait for what was deleted", container_id="c1")
    play.tasks("Wait", "Wait for nobody", container_id=NOBODY)


@scenario()
def requests_about_nobody(play: Play) -> None:
    """Every request about an exec that is not there, and about a container that is not there."""
    play.start("c1")
    for name, fields in (
        ("Get", {}),
        ("Start", {}),
        ("DeleteProcess", {}),
        ("Kill", {"signal": 15}),
        ("ResizePty", {"width": 80, "height": 24}),
        ("CloseIO", {"stdin": True}),
        ("Wait", {}),
    ):
        play.tasks(name, f"{name} an unknown exec", container_id="c1", exec_id=NOBODY, **fields)
        play.tasks(name, f"{name} in an unknown container", container_id=NOBODY, exec_id=NOBODY, **fields)
    for name in ("Pause", "Resume", "ListPids", "Delete", "Update", "Checkpoint"):
        play.tasks(name, f"{name} an unknown container", container_id=NOBODY)
    play.remove("c1")


@scenario()
def names_that_are_none(play: Play) -> None:
    """Container names that no daemon and no shim should take."""
    for number, name in enumerate(("-x", "a/b", "a" * 77, ".hidden", "a..b")):
        play.box.ids.add(name)
        result = play.box.ctr(*play.run_args("c", ("/bin/true",), ())[:-2], name, "/bin/true")
        play.note_result(f"name {number}", result)


@scenario()
def longest_name(play: Play) -> None:
    """The longest name there may be works: the socket's path does not grow with it."""
    name = "a" * 76
    play.run(name, "/bin/true", options=("--rm",))


@scenario()
def checkpoint_without_criu(play: Play) -> None:
    """A checkpoint where there is no criu is refused in runc's words, and the container runs on."""
    play.start("c1")
    path = os.path.join(play.box.folder, "image")
    refusal = play.box.ctr("tasks", "checkpoint", "--image-path", path, "c1")
    play.note("refused", refusal.exit != 0)
    play.note("names criu", "criu" in refusal.complaint.lower())
    play.note_state("c1")
    play.remove("c1")
