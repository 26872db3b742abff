"""A root file system for containers that need nothing but busybox."""

import os
import shutil
import subprocess

FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp")


def make_rootfs(folder: str) -> str:
    """Lay one static busybox, its names, and root's line in /etc/passwd into a folder. Returns the folder.

    Raises: FileNotFoundError when the machine has no busybox.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("busybox is missing: apt-get install busybox-static")
    for name in FOLDERS:
        os.makedirs(os.path.join(folder, name), exist_ok=True)
    shutil.copy(busybox, os.path.join(folder, "bin", "busybox"))
    names = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in set(names) - {"busybox"}:
        os.symlink("busybox", os.path.join(folder, "bin", name))
    for name, text in (("passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("group", "root:x:0:\n")):
        with open(os.path.join(folder, "etc", name), "w", encoding="ascii") as file:
            file.write(text)
    return folder
