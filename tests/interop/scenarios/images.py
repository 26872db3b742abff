"""Containers of an image: the shim mounts their root file system, and unmounts it."""

import os

from tests.interop.play import Play
from tests.interop.scenario import scenario
from tests.support import image, leaks

SHELL = "/bin/sh"


def import_image(play: Play) -> str:
    """Import the busybox image; returns the snapshotter to use: overlayfs where it works."""
    path = os.path.join(play.box.folder, "image.tar")
    image.write_image(path, play.box.rootfs)
    plugins = play.box.ctr("plugins", "ls").text.splitlines()
    works = any(
        line.split()[1] == "overlayfs" and line.split()[-1] == "ok" for line in plugins if len(line.split()) > 3
    )
    snapshotter = "overlayfs" if works else "native"
    found = play.box.ctr("images", "import", "--snapshotter", snapshotter, path)
    assert found.exit == 0, found.complaint
    return snapshotter


def run_args(play: Play, snapshotter: str, container: str, *command: str, options: tuple[str, ...] = ()) -> list[str]:
    play.box.ids.add(container)
    fifos = ("--fifo-dir", play.box.fifo_dir)
    words = ["run", "--runtime", play.runtime, *fifos, "--snapshotter", snapshotter, *options, image.NAME, container]
    return [*words, *command]


@scenario(short=True)
def run_an_image(play: Play) -> None:
    """A container of an image runs with the image's environment on a root file system of its own."""
    snapshotter = import_image(play)
    script = "pwd; echo $FROM; echo new >/tmp/file; cat /tmp/file; exit 3"
    play.ctr("run", *run_args(play, snapshotter, "c1", SHELL, "-c", script, options=("--rm",)))
    play.note("mounts", [path for path in leaks.mounts() if path.startswith(play.box.folder)])


@scenario()
def mounts_of_an_image(play: Play) -> None:
    """The root file system is mounted while there is a task, and unmounted by its delete, also after a restart."""
    snapshotter = import_image(play)
    play.ctr("run -d", *run_args(play, snapshotter, "c1", "/bin/sleep", "1000", options=("--detach", "--null-io")))
    rootfs = os.path.join(play.box.bundle_of("c1"), "rootfs")
    play.note("mounted", rootfs in leaks.mounts())
    play.box.restart()
    play.events.subscribe()
    play.note("mounted after the restart", rootfs in leaks.mounts())
    play.kill("c1")
    play.wait_stopped("c1")
    play.note("mounted after the exit", rootfs in leaks.mounts())
    play.ctr("delete", "tasks", "rm", "c1")
    play.note("mounted after the delete", rootfs in leaks.mounts())
    play.remove("c1")


@scenario()
def image_whose_program_is_missing(play: Play) -> None:
    """A create that fails unmounts what it had mounted."""
    snapshotter = import_image(play)
    result = play.box.ctr(*run_args(play, snapshotter, "c1", "/bin/no-such-program", options=("--null-io",)))
    play.note("exit", result.exit)
    play.note("mounts", [path for path in leaks.mounts() if path.startswith(play.box.folder)])
    play.remove("c1")


@scenario()
def shim_of_an_image_killed(play: Play) -> None:
    """The shim is killed: containerd's `delete` ends the container and unmounts."""
    snapshotter = import_image(play)
    play.ctr("run -d", *run_args(play, snapshotter, "c1", "/bin/sleep", "1000", options=("--detach", "--null-io")))
    for pid, text in play.box.processes().items():
        if "c1" in text:
            os.kill(pid, 9)
    play.events.wait_for("delete c1 = 137")
    play.note_state("c1")
    play.note("mounts", [path for path in leaks.mounts() if path.startswith(play.box.folder)])
    play.remove("c1")
