"""What the keeper is worth: fork to serving, `start` and `delete` as programs, and the memory of its shims.

Beside: a cold shim of ours for memory, containerd's shim for the programs and, in a container's life, for memory too.
"""

import contextlib
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator

from bench.measure import Figures, compare, in_turn, memory_kib, percentile, wall_ms
from bench.rig import Daemon, Rig, program
from shim import launch, launcher
from tests.support.keeperbox import Bundle, KeeperBox
from tests.support.shimbox import ShimBox
from tests.support.waiting import wait_until
from ttrpc.api import shim
from ttrpc.blocking import BlockingClient

SIZES = {"rounds": 60, "few": 20, "many": 100, "execs": 100}
GO_SHIM = "containerd-shim-runc-v2"
# The keeper without one of the things that make its shims small: what each of them saves.
VARIANTS = {"no_rehearsal": {"SHIMD_KEEPER_LIVES": "0"}}


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """The daemons are only there for the peer's shims; ours are started without one."""
    figures: Figures = {}
    with keeper_box() as keeper:
        figures |= serving(keeper, sizes["rounds"])
        figures |= programs(rig, keeper, sizes["rounds"])
        figures |= idle(keeper, sizes["few"], "few")
    with keeper_box() as keeper:
        figures |= idle(keeper, sizes["many"], "many")
    for name, environment in VARIANTS.items():
        with keeper_box(environment) as keeper:
            figures |= idle(keeper, sizes["few"], name)
    figures |= cold(sizes["few"])
    with keeper_box() as keeper:
        figures |= life(keeper, peer, sizes["few"], sizes["execs"])
    return figures


@contextlib.contextmanager
def keeper_box(environment: dict[str, str] | None = None) -> Iterator[KeeperBox]:
    """A keeper whose template has rehearsed."""
    with KeeperBox() as keeper:
        keeper.environment |= environment or {}
        first = keeper.bundle("first")
        first.start()
        keeper.wait_ready()
        first.close()
        yield keeper


# --- time -------------------------------------------------------------------------------------------------------------


def serving(keeper: KeeperBox, rounds: int) -> Figures:
    """From the request to the keeper until the shim has answered its first call."""
    (path,) = keeper.sockets()
    environment = {os.fsencode(key): os.fsencode(value) for key, value in {**os.environ, **keeper.environment}.items()}
    asked, served = [], []
    for number in range(rounds):
        bundle = keeper.bundle(f"serving{number}")
        request = launch.pack_request(os.fsencode(bundle.path), bundle.arguments("start"), environment, b"")
        began = time.perf_counter()
        outcome, text = launch.ask(os.fsencode(path), request)
        asked.append((time.perf_counter() - began) * 1000)
        assert outcome == launch.OK, text
        answer_info(text.decode())
        served.append((time.perf_counter() - began) * 1000)
        bundle.close()
    return {
        "keeper_answer_ours_ms": statistics.median(asked),
        "keeper_answer_ours_p95_ms": percentile(asked, 95),
        "keeper_serving_ours_ms": statistics.median(served),
        "keeper_serving_ours_p95_ms": percentile(served, 95),
    }


def answer_info(address: str) -> None:
    """One call to a shim."""
    with BlockingClient.connect(address) as client:
        client.call("shimd.shim.v1.Shim", "Info", shim.InfoRequest(), timeout_s=20)


def programs(rig: Rig, keeper: KeeperBox, rounds: int) -> Figures:
    """What containerd executes: `start`, and `delete` after an end in order, beside the peer's."""
    go = program(GO_SHIM)
    own = launcher.install(keeper.folder)
    environment = {**os.environ, **keeper.environment, "TTRPC_ADDRESS": f"{keeper.folder}/none.ttrpc"}

    def start(argv0: str, side: str) -> Callable[[int], float]:
        def once(number: int) -> float:
            bundle = keeper.bundle(f"{side}{number}")
            taken = program_ms([argv0, *bundle.arguments("start")], bundle.path, environment)
            if side == "go":
                end_go_shim(argv0, bundle, environment)
            bundle.close()
            return taken

        return once

    def delete(argv0: str, side: str) -> Callable[[int], float]:
        bundle = keeper.bundle(f"deleted-{side}")
        for name, content in {"ended": f"deleted-{side}\n\b\1", "runtime": "", "options.json": "{}"}.items():
            with open(os.path.join(bundle.path, name), "w", encoding="ascii") as file:
                file.write(content)
        words = [argv0, *bundle.arguments("-bundle", bundle.path, "delete")]
        return lambda _number: program_ms(words, bundle.path, environment, check=side == "ours")

    return {
        **compare("shim_start", "ms", *in_turn(rounds, start(own, "ours"), start(go, "go"))),
        **compare("shim_delete", "ms", *in_turn(rounds, delete(own, "ours"), delete(go, "go"))),
        **compare(
            "shim_version", "ms", *in_turn(rounds, lambda _: wall_ms([own, "-v"]), lambda _: wall_ms([go, "-v"]))
        ),
    }


def program_ms(argv: list[str], cwd: str, environment: dict[str, str], *, check: bool = True) -> float:
    """Run one action as a daemon does: until its output ends and it has exited."""
    began = time.perf_counter()
    done = subprocess.run(
        argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    taken = (time.perf_counter() - began) * 1000
    if check and done.returncode != 0:
        raise RuntimeError(f"{argv[0]} {argv[-1]}: {done.stdout.decode()}")
    return taken


def end_go_shim(argv0: str, bundle: Bundle, environment: dict[str, str]) -> None:
    """It ends by itself soon without its containerd; what it printed is its socket."""
    program_ms([argv0, *bundle.arguments("-bundle", bundle.path, "delete")], bundle.path, environment, check=False)


# --- memory -----------------------------------------------------------------------------------------------------------


def mean_kib(pids: list[int], name: str) -> Figures:
    """The figures of a population."""
    rows = [memory_kib(pid) for pid in pids]
    return {f"{name}_{kind}_ours_kib": statistics.mean(row[kind] for row in rows) for kind in ("private_dirty", "pss")}


def idle(keeper: KeeperBox, count: int, name: str) -> Figures:
    """Shims that serve and have no container yet."""
    bundles = [keeper.bundle(f"{name}{number}") for number in range(count)]
    for bundle in bundles:
        bundle.start()
    for bundle in bundles:
        wait_until(lambda bundle=bundle: is_serving(bundle), what="the shim to serve")  # type: ignore[misc]
    figures = mean_kib([bundle.shim_pid for bundle in bundles], f"idle_{name}")
    if name == "many":
        figures["keeper_private_dirty_ours_kib"] = sum(
            memory_kib(pid)["private_dirty"] for pid in (keeper.pid, keeper.template())
        )
    for bundle in bundles:
        bundle.close()
    return figures


def is_serving(bundle: Bundle) -> bool:
    """By its log: a call would make it do more than nothing."""
    return os.path.exists(f"{bundle.path}/shim.log") and 'msg="serving ' in bundle.read("shim.log")


def cold(count: int) -> Figures:
    """The same without a keeper."""
    with KeeperBox() as keeper:
        keeper.environment["SHIMD_KEEPER"] = "off"
        return idle(keeper, count, "cold")


def life(keeper: KeeperBox, peer: Daemon, count: int, execs: int) -> Figures:
    """With a running container; after execs; after a megabyte of log. The peer's figure is with a running container."""
    with contextlib.ExitStack() as stack:
        boxes = [stack.enter_context(keeper.shim(container_id=f"life{number}")) for number in range(count)]
        for box in boxes:
            box.create(stdout=log_uri(box), stderr=log_uri(box))
            box.start()
        pids = [box.shim_pid for box in boxes]
        figures = mean_kib(pids, "running")
        for box in boxes[: max(1, count // 5)]:
            for number in range(execs):
                box.run_exec(f"e{number}", ["true"])
        some = pids[: max(1, count // 5)]
        figures |= mean_kib(some, "after_execs")
        for box in boxes[: len(some)]:
            box.run_exec("log", ["sh", "-c", "yes 0123456789012345678901234567890 | head -c 1000000 > /proc/1/fd/1"])
        figures |= mean_kib(some, "after_log")
    names = [f"keeper{number}" for number in range(count)]
    for container in names:
        peer.run(container)
    wait_until(lambda: all(peer.shim_pid(container) for container in names), what="the peer's shims")
    rows = [memory_kib(peer.shim_pid(container)) for container in names]
    for kind in ("private_dirty", "pss"):
        figures[f"running_{kind}_peer_kib"] = statistics.mean(row[kind] for row in rows)
        figures[f"running_{kind}_ratio"] = figures[f"running_{kind}_ours_kib"] / figures[f"running_{kind}_peer_kib"]
    return figures


def log_uri(box: ShimBox) -> str:
    """A log of the shim's own in the box's folder."""
    return f"log://{box.folder}/log?format=json&max-size=4000000&max-files=2"


def main() -> None:
    """Ours alone, printed as JSON: for a quick look without containerd."""
    from bench.rig import rig

    with rig():
        figures: Figures = {}
        with keeper_box() as keeper:
            figures |= serving(keeper, SIZES["rounds"])
            figures |= idle(keeper, SIZES["few"], "few")
    print(json.dumps({key: round(value, 2) for key, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
