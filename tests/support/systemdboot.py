"""Becomes systemd, as PID 1 of namespaces of its own, on a machine whose PID 1 may be anything. Run by `systemdbox`.

    python systemdboot.py NAME FOLDER           into cgroups of that name, into new namespaces, and on as the next
    python systemdboot.py --inside FOLDER       the mounts systemd wants to find, then systemd itself

Of the machine it sees the file systems, but /run, /var, /etc and /dev of its own, no /proc/sys to write to, and the
cgroups below NAME only. Its units are those of FOLDER/units alone. Sources: https://systemd.io/CONTAINER_INTERFACE,
unshare(1), cgroup_namespaces(7).
"""

import os
import shutil
import subprocess
import sys

SYSTEMD = "/lib/systemd/systemd"
# Of the machine's /etc: who there is, and how the loader finds libraries.
ETC = ("passwd", "group", "shadow", "nsswitch.conf", "ld.so.cache", "ld.so.conf", "ld.so.conf.d")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse")
CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")
NAMESPACES = ("--pid", "--mount", "--ipc", "--net", "--uts", "--cgroup")
CGROUP_ROOT = "/sys/fs/cgroup"
MACHINE_ID = "5d1f0f4e5d1f0f4e5d1f0f4e5d1f0f4e\n"


def hierarchies() -> list[tuple[str, str, str]]:
    """Each mounted cgroup hierarchy: mount point, type, and the option that names it again."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            kind, _, options = right.split()[:3]
            if kind in ("cgroup", "cgroup2"):
                names = [name for name in options.split(",") if name not in ("rw", "ro", "xattr")]
                found.append((left.split()[4], kind, ",".join(n for n in names if not n.startswith("release_agent"))))
    return found


def join(name: str) -> None:
    """Go into a new cgroup in each hierarchy: it is the root of all that the namespace sees."""
    for root, kind, _ in hierarchies():
        path = os.path.join(root, name)
        os.makedirs(path, exist_ok=True)
        for file_name in CPUSET_FILES if kind == "cgroup" else ():
            if os.path.exists(f"{path}/{file_name}"):
                write(f"{path}/{file_name}", read(f"{root}/{file_name}"))
        write(f"{path}/cgroup.procs", "0")


def inside(folder: str) -> None:
    """Make the mounts and become systemd."""
    make_cgroups()
    leave_behind("/run", "/var", "/etc", "/dev")
    for where in ("/run", "/var"):
        mount("tmpfs", where, "-o", "mode=755")
    make_dev()
    make_etc(f"{folder}/etc")
    for path in ("/var/lib", "/var/log", "/var/tmp", "/run/lock"):
        os.makedirs(path)
    os.symlink("/run", "/var/run")
    subprocess.run(["mount", "--bind", "/proc/sys", "/proc/sys"], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", "/proc/sys"], check=True)
    environ = {"PATH": os.environ["PATH"], "container": "shimd-test", "SYSTEMD_UNIT_PATH": f"{folder}/units"}
    os.execve(SYSTEMD, [SYSTEMD, "--unit=box.target", "--show-status=false", "--log-target=console"], environ)


def make_cgroups() -> None:
    """The same hierarchies, from our own cgroups on. They may lie in a tmpfs, which systemd adds folders to and makes
    read-only: it gets one of its own, for what it did to the machine's would be done to the machine.
    """
    found = hierarchies()
    for where, _, _ in found:
        subprocess.run(["umount", "-l", where], check=True)
    if all(where != CGROUP_ROOT for where, _, _ in found):
        mount("tmpfs", CGROUP_ROOT, "-o", "mode=755")
    for where, kind, options in found:
        os.makedirs(where, exist_ok=True)
        mount(kind, where, *(("-o", options) if kind == "cgroup" else ()))
        # runc makes a namespace's parent and leaves it; here it was there before, and goes with the box.
        os.makedirs(os.path.join(where, "default"), exist_ok=True)


def leave_behind(*tops: str) -> None:
    """What the machine has mounted there is not the box's: systemd would make a unit of each."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        paths = [line.split()[4].encode().decode("unicode_escape") for line in file]
    for path in reversed(paths):
        if path.startswith(tuple(f"{top}/" for top in tops)) and not path.startswith("/dev/shm"):
            subprocess.run(["umount", "-l", path], check=False, stderr=subprocess.DEVNULL)


def make_dev() -> None:
    """Few devices, so that no link that systemd or journald makes comes into the machine's /dev."""
    os.makedirs("/run/box-dev")
    subprocess.run(["mount", "--bind", "/dev", "/run/box-dev"], check=True)
    mount("tmpfs", "/dev", "-o", "mode=755")
    for name in DEVICES:
        if os.path.exists(f"/run/box-dev/{name}"):
            with open(f"/dev/{name}", "w", encoding="ascii"):
                pass
            subprocess.run(["mount", "--bind", f"/run/box-dev/{name}", f"/dev/{name}"], check=True)
    subprocess.run(["umount", "-l", "/run/box-dev"], check=True)
    for name, kind, options in (("pts", "devpts", "newinstance,ptmxmode=0666,mode=620"), ("shm", "tmpfs", "mode=1777")):
        os.mkdir(f"/dev/{name}")
        mount(kind, f"/dev/{name}", "-o", options)
    os.symlink("pts/ptmx", "/dev/ptmx")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")
    os.symlink("/proc/self/fd", "/dev/fd")


def make_etc(folder: str) -> None:
    os.makedirs(f"{folder}/systemd/system")
    for name in ETC:
        path = f"/etc/{name}"
        if os.path.isdir(path):
            shutil.copytree(path, f"{folder}/{name}", symlinks=True)
        elif os.path.exists(path):
            shutil.copy(path, f"{folder}/{name}")
    write(f"{folder}/machine-id", MACHINE_ID)
    subprocess.run(["mount", "--bind", folder, "/etc"], check=True)


def mount(kind: str, where: str, *options: str) -> None:
    subprocess.run(["mount", "-t", kind, *options, kind, where], check=True)


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def main(first: str, folder: str) -> None:
    if first == "--inside":
        inside(folder)
    join(first)
    command = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
    os.execvp(command[0], [*command, sys.executable, os.path.abspath(__file__), "--inside", folder])


if __name__ == "__main__":
    main(*sys.argv[1:])
