"""Numbers: pairs taken in turn, medians, ratios with their noise, memory of processes, and where results go."""

import json
import os
import platform
import random
import statistics
import subprocess
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, "results")
BOOTSTRAPS = 1000  # resamples behind each interval; more do not move its second digit

Figures = dict[str, float]


# --- pairs ------------------------------------------------------------------------------------------------------------


def in_turn(rounds: int, *actions: Callable[[int], float]) -> list[list[float]]:
    """Take one figure of each action per round, in an order drawn anew each round, so that drift hits all alike.

    Each action gets the number of its round. Returns one list per action, paired by index.
    """
    figures: list[list[float]] = [[] for _ in actions]
    order = list(range(len(actions)))
    for number in range(rounds):
        random.shuffle(order)
        for index in order:
            figures[index].append(actions[index](number))
    return figures


@dataclass(frozen=True)
class Ratio:
    """Median of ours over median of the peer's, and the range the true ratio lies in nineteen times out of twenty."""

    value: float
    low: float
    high: float


def ratio(ours: Sequence[float], peers: Sequence[float]) -> Ratio:
    """How ours compares: below 1 is less (of time, of memory). Rounds are resampled as pairs."""
    pairs = list(zip(ours, peers, strict=True))
    source = random.Random(0)  # the same figures give the same interval
    resampled = []
    for _ in range(BOOTSTRAPS):
        drawn = source.choices(pairs, k=len(pairs))
        resampled.append(statistics.median(a for a, _ in drawn) / statistics.median(b for _, b in drawn))
    resampled.sort()
    tail = BOOTSTRAPS // 40
    return Ratio(statistics.median(ours) / statistics.median(peers), resampled[tail], resampled[-tail - 1])


def compare(name: str, unit: str, ours: Sequence[float], peers: Sequence[float]) -> Figures:
    """The figures of one comparison, under names a budget can ask for."""
    found = ratio(ours, peers)
    return {
        f"{name}_ours_{unit}": statistics.median(ours),
        f"{name}_peer_{unit}": statistics.median(peers),
        f"{name}_ours_p95_{unit}": percentile(ours, 95),
        f"{name}_peer_p95_{unit}": percentile(peers, 95),
        f"{name}_ratio": found.value,
        f"{name}_ratio_low": found.low,
        f"{name}_ratio_high": found.high,
    }


def percentile(figures: Sequence[float], percent: float) -> float:
    """The smallest figure that `percent` of them do not exceed."""
    ordered = sorted(figures)
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]


# --- one command, one process -----------------------------------------------------------------------------------------


def wall_ms(argv: Sequence[str]) -> float:
    """How long one command takes, from fork to its end.

    Raises: CalledProcessError when it fails: a failed command has no duration.
    """
    started = time.perf_counter()
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    taken = (time.perf_counter() - started) * 1000
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, list(argv), done.stdout, done.stderr)
    return taken


def cpu_ms(argv: list[str]) -> float:
    """Processor time one command takes for itself, user and system."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
    finally:
        os.close(null)
    if status != 0:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), list(argv))
    return (usage.ru_utime + usage.ru_stime) * 1000


def memory_kib(pid: int) -> dict[str, int]:
    """PSS, private dirty, unique (private, clean and dirty) and resident memory. Source: proc(5), smaps_rollup."""
    found = {}
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in list(file)[1:]:
            key, _, rest = line.partition(":")
            found[key] = int(rest.split()[0])
    return {
        "pss": found["Pss"],
        "private_dirty": found["Private_Dirty"],
        "unique": found["Private_Dirty"] + found["Private_Clean"],
        "resident": found["Rss"],
    }


# --- results and budgets ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Promise:
    """One line of budgets.toml."""

    script: str
    figure: str
    at_most: float | None
    at_least: float | None
    says: str
    pending: str  # why it need not hold yet; empty when it must

    def holds(self, value: float) -> bool:
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)

    @property
    def bound(self) -> str:
        return f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"


def promises() -> list[Promise]:
    """Every promise of budgets.toml."""
    with open(os.path.join(HERE, "budgets.toml"), "rb") as file:
        rows = tomllib.load(file)["promise"]
    return [
        Promise(
            row["script"], row["figure"], row.get("at_most"), row.get("at_least"), row["says"], row.get("pending", "")
        )
        for row in rows
    ]


def machine() -> dict[str, object]:
    """What a figure must be read with."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "cpu": models[0] if models else platform.machine(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def commit() -> str:
    """The commit measured, marked when the tree differs from it; empty outside a clone."""
    command = ["git", "-C", HERE, "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def store(script: str, figures: Figures, sizes: dict[str, int]) -> None:
    """Append one line to results/<script>.jsonl."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"at": at, "commit": commit(), **machine(), **sizes, "figures": {k: round(v, 4) for k, v in figures.items()}}
    os.makedirs(RESULTS, exist_ok=True)
    with open(os.path.join(RESULTS, f"{script}.jsonl"), "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
