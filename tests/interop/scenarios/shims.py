"""The shim itself: asked directly on its socket, by `ctr shim`, in a group, and started twice."""

import json
import os

from tests.interop.play import Play
from tests.interop.scenario import scenario
from tests.support.containerdbox import listed
from tests.support.waiting import wait_until
from ttrpc.api import runc

PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
GROUP = "io.containerd.runc.v2.group"


@scenario(short=True)
def ctr_shim(play: Play) -> None:
    """`ctr shim` finds the socket by containerd's rule; its state, exec and delete."""
    play.start("c1")
    play.note("state", json.loads(without_pids(play.box.ctr("shim", "--id", "c1", "state").text)))
    play.ctr("state of nobody", "shim", "--id", "nobody", "state")
    play.ctr("delete while running", "shim", "--id", "c1", "delete")
    spec = os.path.join(play.box.folder, "process.json")
    with open(spec, "w", encoding="utf-8") as file:
        json.dump({"args": ["/bin/sh", "-c", "exit 4"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": []}, file)
    play.ctr("exec", "shim", "--id", "c1", "exec", "--spec", spec, "e1")
    play.note_state("c1")
    play.remove("c1")


def without_pids(text: str) -> str:
    found = json.loads(text)
    found["pid"] = found["pid"] > 0
    return json.dumps(found)


@scenario()
def bundle_files(play: Play) -> None:
    """What containerd and others read in a bundle is there, in the same form."""
    play.start("c1")
    play.exec("c1", "e1", "/bin/true")
    bundle = play.box.bundle_of("c1")
    for name in ("address", "init.pid", "shim-binary-path", "config.json", "log", "options.json", "runtime"):
        path = os.path.join(bundle, name)
        play.note(f"there is {name}", os.path.exists(path))
    with open(os.path.join(bundle, "address"), "rb") as file:
        play.note("address", file.read())
    with open(os.path.join(bundle, "init.pid"), "rb") as file:
        play.note("init.pid is the pid", int(file.read()) == play.pid_of("c1"))
    with open(os.path.join(bundle, "options.json"), "rb") as file:
        play.note("binary in the options", json.load(file).get("binary_name", ""))
    play.remove("c1")


@scenario()
def wire_errors(play: Play) -> None:
    """The shim's own answers, code and words, to calls that make no sense; v2 of the service is served."""
    play.start("c1")
    spec = {"type_url": PROCESS_URL, "value": b'{"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}}'}
    nobody = {"id": "c1", "exec_id": "nobody"}
    for name, fields in (
        ("State", nobody),
        ("Start", nobody),
        ("Delete", nobody),
        ("Kill", {**nobody, "signal": 15}),
        ("ResizePty", nobody),
        ("CloseIO", nobody),
        ("Wait", nobody),
        ("Connect", {"id": "c1"}),
        ("Connect", {"id": "other"}),
        ("Shutdown", {"id": "c1"}),
        ("Exec", {"id": "c1", "exec_id": "e1", "spec": spec}),
        ("Exec", {"id": "c1", "exec_id": "e1", "spec": spec}),
        ("Delete", {"id": "c1", "exec_id": "e1"}),
        ("Start", {"id": "c1"}),
        ("Delete", {"id": "c1"}),
        ("State", {"id": "c1"}),
    ):
        play.wire(f"{name} {fields.get('exec_id', '')}".strip(), "c1", name, **fields)
    play.kill("c1")
    play.wait_stopped("c1")
    for name, fields in (
        ("Start", {"id": "c1"}),
        ("Exec", {"id": "c1", "exec_id": "e2", "spec": spec}),
        ("Kill", {"id": "c1", "signal": 15}),
        ("Pause", {"id": "c1"}),
        ("Resume", {"id": "c1"}),
        ("Wait", {"id": "c1"}),
        ("Connect", {"id": "c1"}),
        ("Shutdown", {"id": "c1"}),
        ("State", {"id": "c1"}),
    ):
        play.wire(f"{name} when stopped", "c1", name, **fields)
    play.remove("c1")


@scenario()
def grouped(play: Play) -> None:
    """Containers that ask for one shim together, as pods do: each has its own life."""
    play.box.ids.add("pod")
    options = ("--annotation", f"{GROUP}=pod")
    play.start("c1", options=options)
    play.start("c2", options=options)
    play.note("shims", sum("shim" in text for text in play.box.processes().values()))
    for container in ("c1", "c2"):
        play.exec(container, "e1", "/bin/sh", "-c", "exit 3")
        play.note_state(container)
    play.kill("c1")
    play.wait_stopped("c1")
    play.note_state("c2")
    play.ctr("delete", "tasks", "rm", "c1")
    play.exec("c2", "e2", "/bin/sh", "-c", "echo alive")
    play.start("c3", options=options)
    play.kill("c2")
    play.wait_stopped("c2")
    play.ctr("delete", "tasks", "rm", "c2")
    play.note_state("c3")
    play.remove("c1", "c2", "c3")


@scenario()
def runtime_options(play: Play) -> None:
    """The task's options: a runc and a runc root of one's own, no pivot_root, no new keyring, an owner of the I/O."""
    root = os.path.join(play.box.folder, "own-root")
    binary = os.path.join(play.box.folder, "own-runc")
    with open(binary, "w", encoding="utf-8") as file:
        file.write(f'#!/bin/sh\necho "$@" >>{binary}.log\nexec runc "$@"\n')
    os.chmod(binary, 0o755)
    options = runc.Options(
        binary_name=binary, root=root, no_pivot_root=True, no_new_keyring=True, io_uid=1234, io_gid=1234
    )
    log = os.path.join(play.box.folder, "c1.log")
    fields = {"type_url": "containerd.runc.v1.Options", "value": options.SerializeToString()}
    script = os.path.join(play.box.rootfs, "tmp/script")
    with open(script, "w", encoding="utf-8") as file:
        file.write("stat -Lc %u:%g /proc/self/fd/1 2>/dev/null\nexec sleep 1000\n")
    play.create("c1", "/bin/sh", "/tmp/script", options=fields, stdout=f"file://{log}", stderr=f"file://{log}")
    play.note("state is in the root", sorted(listed(os.path.join(root, play.box.namespace))))
    play.tasks("Start", container_id="c1")
    wait_until(
        lambda: os.path.exists(log) and os.path.getsize(log) > 0, what="the container to say whose its output is"
    )
    with open(log, "rb") as file:
        play.note("owner of its output", file.read())
    play.exec("c1", "e1", "/bin/true")
    play.kill("c1")
    play.wait_stopped("c1")
    play.ctr("delete", "tasks", "rm", "c1")
    play.note("state is gone", sorted(listed(os.path.join(root, play.box.namespace))))
    with open(f"{binary}.log", encoding="utf-8") as file:
        words = file.read()
    used = ("create", "start", "exec", "delete", "--no-pivot", "--no-new-keyring")
    play.note("the binary was asked", {word: f" {word} " in words for word in used})
    play.remove("c1")


@scenario()
def shim_killed(play: Play) -> None:
    """The shim of a healthy container is killed: what containerd makes of it."""
    play.start("c1")
    for pid, text in play.box.processes().items():
        if "c1" in text:
            os.kill(pid, 9)
    play.events.wait_for("delete c1 = 137")
    play.note_state("c1")
    play.remove("c1")


@scenario()
def shim_killed_after_the_exit(play: Play) -> None:
    """The container has ended with 7, then its shim is killed: which status containerd gets."""
    play.start("c1", "/bin/sh", "-c", "exit 7", options=("--null-io",))
    play.events.wait_for("exit c1 = 7")
    for pid, text in play.box.processes().items():
        if "c1" in text:
            os.kill(pid, 9)
    wait_until(lambda: play.state("c1") is None, what="containerd to clean up")
    play.remove("c1")
