"""The box of the kill matrix: a daemon with a keeper, fault points armed, a runc that can be stopped, and the striker.

box.lay("create.adopted") lays a trap; whoever falls into it stops; Strike then kills its victims and lets go.
"""

import contextlib
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from tests.support import leaks
from tests.support.daemonbox import NAMESPACE, RUNTIME, TASKS, DaemonBox
from tests.support.keeperbox import end_keepers
from tests.support.keptbox import is_running
from tests.support.waiting import wait_until
from ttrpc.api import tasks
from ttrpc.blocking import BlockingClient
from ttrpc.errors import StatusError, TtrpcError
from ttrpc.status import Code

DAEMON, KEEPER, SHIM, RUNC = "daemon", "keeper", "shim", "runc"
ARMED = dict.fromkeys(("SHIMD_FAULTS_ARMED", "SHIMD_SHIM_FAULTS_ARMED"), "yes-kill-me")
SERVING = re.compile(r'msg="serving at \S+ pid=(\d+);')
# A healthy machine answers in milliseconds; this is the promise. What a slow one gets is said by `scale`.
ANSWER_S = 2.0
# A gate for each verb, before runc is begun and after it has done its work. `$$` leads the process group.
RUNC_PROGRAM = """#!/bin/sh
gate() {{
    if [ -p "{traps}/runc.$1" ] && mv "{traps}/runc.$1" "{traps}/runc.$1.hit.$$"; then
        cat "{traps}/runc.$1.hit.$$" 2>/dev/null  # gone when somebody was let out before we stood in it
    fi
}}
if [ "$1" = hook ]; then gate "$2"; exit 0; fi
for word; do
    case $word in create|start|exec|pause|resume|update|delete) verb=$word; break ;; esac
done
gate "$verb.begun"
{runc} "$@" || exit $?
gate "$verb.done"
"""


class MatrixBox(DaemonBox):
    """Owns the traps, and the keepers of this box besides what a DaemonBox owns."""

    def __init__(self, *, relieves: bool = False) -> None:
        self.relieves = relieves  # else a shim is another process only when somebody was killed
        super().__init__(config="wedged.after_s = 0  # who stands in a trap does not hang", autostart=False)
        self.traps, self.keepers, self.program = (f"{self.folder}/{name}" for name in ("t", "k", "runc"))
        self.lock = threading.Lock()  # of `daemon`: a strike starts it anew
        os.mkdir(self.traps)
        self.environ |= {
            **ARMED,
            "SHIMD_WEDGED_S": "0",
            "SHIMD_RELIEF_S": "0.05" if relieves else "off",
            "SHIMD_FAULTS_DIR": self.traps,
            "SHIMD_SHIM_FAULTS": self.traps,
        }
        self.environ["SHIMD_KEEPER"] = self.keepers
        self.environ["SHIMD_KEEPER_CGROUP"] = ""
        with open(self.program, "w", encoding="utf-8") as file:
            file.write(RUNC_PROGRAM.format(traps=self.traps, runc=shutil.which("runc")))
        os.chmod(self.program, 0o700)
        with open(self.config_path, "a", encoding="utf-8") as file:
            file.write(f'[runtimes."{RUNTIME}"]\nrunc = "{self.program}"\n')
        self.start()

    # --- traps

    def lay(self, name: str) -> None:
        os.mkfifo(f"{self.traps}/{name}", 0o600)

    def fallen(self) -> tuple[str, int] | None:
        """The taken trap's path, and who stands in it."""
        for path in glob.glob(f"{self.traps}/*.hit.*"):
            return path, int(path.rpartition(".")[2])
        return None

    def clear_traps(self) -> None:
        """Let everybody go who stands in one, and remove all."""
        for path in glob.glob(f"{self.traps}/*"):
            release(path)

    # --- who is who

    def keeper_pids(self) -> list[int]:
        """Every keeper that lives, the oldest first."""
        try:
            log = leaks.read(f"{self.keepers}/keeper.log")
        except FileNotFoundError:
            return []
        return [pid for pid in map(int, SERVING.findall(log)) if is_running(pid)]

    def shim_pids(self, container_id: str) -> list[int]:
        """The living shim of a container, or the copy that is about to be it; none when it has none now."""
        path = os.path.realpath(self.bundle(container_id))
        found = set()
        for pid in leaks.pids():
            with contextlib.suppress(OSError):
                if leaks.read(f"/proc/{pid}/comm").startswith("shim:") and os.readlink(f"/proc/{pid}/cwd") == path:
                    found.add(pid)
        with contextlib.suppress(OSError, ValueError):
            named = int(leaks.read(f"{path}/shim.pid"))
            # Neither a copy nor one that has just executed other code has the name of a shim yet.
            if leaks.read(f"/proc/{named}/comm").startswith("shim") or os.readlink(f"/proc/{named}/cwd") == path:
                found.add(named)
        return [pid for pid in found if is_running(pid)]

    def ensure_keeper(self) -> None:
        """Have one, so that it can be killed: the daemon waits a while before it starts another that does not last."""
        if not self.keeper_pids():
            path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
            command = ["containerd-shim-shimd-v2", "ensure-keeper"]
            environ = {**os.environ, **self.environ, "PATH": path, "SHIMD_SOCKET_DIR": f"{self.state}/s"}
            subprocess.run(command, env=environ, check=True, capture_output=True, timeout=30)
            wait_until(self.keeper_pids, what="a keeper to serve")

    def pids_of(self, victim: str, container_id: str, stopped: int) -> list[int]:
        if victim == DAEMON:
            return [self.daemon.pid] if self.daemon is not None else []
        if victim == KEEPER:
            return self.keeper_pids()[-1:]
        return self.shim_pids(container_id) if victim == SHIM else [stopped]

    def logs_of(self, container_id: str) -> str:
        """What daemon, keeper and shim wrote of a container: for a cell that fails."""
        paths = [f"{self.keepers}/keeper.log", *glob.glob(f"{self.bundle(container_id)}/shim.log*")]
        lines = [line for line in self.log().splitlines() if container_id in line and "call=Get" not in line]
        for path in paths:
            with contextlib.suppress(OSError):
                lines += [path, *leaks.read(path).splitlines()[-40:]]
        return "\n".join(lines)

    # --- what is left

    def left_of(self, container_id: str) -> list[str]:
        """Whatever still speaks of a container that was deleted."""
        bundle = self.bundle(container_id)
        found = [f"mount {path}" for path in leaks.mounts() if container_id in path or f"{self.state}/s/pins" in path]
        found += [path for path in (bundle, f"{self.state}/runc/{NAMESPACE}/{container_id}") if os.path.lexists(path)]
        with contextlib.suppress(FileNotFoundError):
            found += [f"socket {name}" for name in os.listdir(f"{self.state}/s")]
        found += [f"cgroup {path}" for path in leaks.cgroups() if path.endswith(f"{self.cgroup_parent}/{container_id}")]
        for pid in leaks.pids():
            with contextlib.suppress(OSError):
                command = leaks.read(f"/proc/{pid}/cmdline").replace("\0", " ")
                is_its = container_id in command or os.readlink(f"/proc/{pid}/cwd").startswith(bundle)
                if is_its and is_running(pid):
                    found.append(f"process {pid} {command}")
        return found

    def close(self) -> None:
        self.clear_traps()
        try:
            super().close()
        finally:
            end_keepers(self.keepers, signal.SIGTERM)  # one that is being started just now, too
            shutil.rmtree(self.folder, ignore_errors=True)


def release(path: str) -> None:
    """Let go who stands at a gate, if anybody does, and remove it."""
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


class Strike(threading.Thread):
    """Waits until somebody stands in a trap, kills the victims, lets go who stands there, has the daemon back, asks.

    After `join`: `stopped` is who stood there (0: nobody came), `answer_s` how long the API took to answer.
    """

    def __init__(self, box: MatrixBox, container_id: str, victims: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.box, self.container_id, self.victims = box, container_id, victims
        self.stopped = 0
        self.answer_s = 0.0
        self.failure: BaseException | None = None
        self.is_cancelled = False
        self.has_struck = threading.Event()

    def run(self) -> None:
        try:
            wait_until(lambda: self.is_cancelled or self.box.fallen(), deadline_s=60.0, what="somebody to stop there")
            fallen = self.box.fallen()
            if fallen is None or self.is_cancelled:
                return
            self._strike(*fallen)
            self.answer_s = self._ask()
        except BaseException as error:  # noqa: BLE001 - the life that waits for it raises it
            self.failure = error
        finally:
            self.has_struck.set()

    def _strike(self, trap: str, stopped: int) -> None:
        box = self.box
        doomed = {victim: box.pids_of(victim, self.container_id, stopped) for victim in self.victims}
        assert all(doomed.values()), f"nobody is there to be killed: {doomed}"
        for victim, pids in doomed.items():
            for pid in pids:
                if victim == RUNC:
                    os.killpg(os.getpgid(pid), signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGKILL)
        for pid in (pid for pids in doomed.values() for pid in pids):
            wait_until(lambda pid=pid: not is_running(pid), what=f"process {pid} to be dead")  # type: ignore[misc]
        self.stopped = stopped
        release(trap)
        if DAEMON in doomed:
            with box.lock:
                assert box.daemon is not None
                box.daemon.wait()
                box.daemon = None
                box.start(recovered=False)

    def _ask(self) -> float:
        """How long until the API says how the container is; that there is none (yet, any more) is an answer."""
        began = time.monotonic()
        wait_until(self._is_answered, deadline_s=30.0, what="the API to answer")
        return time.monotonic() - began

    def _is_answered(self) -> bool:
        request = tasks.GetRequest(container_id=self.container_id)
        try:
            with BlockingClient.connect(self.box.address) as client:
                client.call(TASKS, "Get", request, timeout_s=20.0, metadata={"containerd-namespace-ttrpc": NAMESPACE})
        except StatusError as error:
            return error.code == Code.NOT_FOUND
        except (OSError, TtrpcError):
            return False
        return True
