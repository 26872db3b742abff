"""Run the measurements, keep one line of each in results/, and hold them against budgets.toml.

python -m bench.run [--quick] [--null] [--no-store] [script …]
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable

from bench.containerd import Containerd
from bench.measure import Figures, Promise, promises, store
from bench.ours import Shimd
from bench.rig import Daemon, Rig, rig

# In the order they are run; each with a rig of its own.
SCRIPTS = (
    *(
        "memory",
        "start",
        "execs",
        "exits",
        "restart",
        "upgrade",
        "shim_upgrade",
        "cli",
        "rps",
        "logs",
        "attach",
        "keeper",
        "hostile",
    ),
    *("ctr", "ctr_memory", "ctr_logs"),  # our shim under containerd: these name another class for our side
)
# Measured without a peer, by its own main; a length that is bearable beside the others.
ALONE = {"storm": ["--containers", "20", "--kills", "500"]}
QUICK_SHARE = 5  # --quick divides every size by this: for trying a script, not for a figure anybody quotes

Measure = Callable[[Rig, Daemon, Daemon, dict[str, int]], Figures]


class OtherContainerd(Containerd):
    """A second containerd in our place: what the method itself calls different (--null)."""

    name = "containerd2"

    @property
    def namespace(self) -> str:
        return f"{self.rig.namespace}.second"


def run_script(name: str, *, quick: bool, null: bool) -> tuple[Figures, dict[str, int]]:
    """Measure one script on fresh ground. Returns its figures and the sizes they were taken at."""
    script = importlib.import_module(f"bench.{name}")
    sizes: dict[str, int] = {key: max(2, size // QUICK_SHARE) if quick else size for key, size in script.SIZES.items()}
    measure: Measure = script.measure
    side: type[Daemon] = OtherContainerd if null else getattr(script, "OURS", Shimd)
    with rig() as ground, side(ground) as ours, Containerd(ground) as peer:
        return measure(ground, ours, peer, sizes), sizes


def show(name: str, figures: Figures) -> None:
    """The figures as a table: ours, the peer's, and their ratio with its range."""
    print(f"\n{name}")
    shown: set[str] = set()
    for key in figures:
        if "_ours" not in key:
            continue
        other = key.replace("_ours", "_peer")
        left, right = figures[key], figures.get(other)
        shown |= {key, other}
        factor = f"{left / right:6.2f} ×" if right else ""
        print(f"  {key.replace('_ours', ''):32} {left:12.1f} {'' if right is None else f'{right:12.1f}'} {factor}")
    for key, value in figures.items():
        if key.endswith("_ratio") and f"{key}_low" in figures:
            low, high = figures[f"{key}_low"], figures[f"{key}_high"]
            print(f"  {key:32} {value:12.2f}   between {low:.2f} and {high:.2f}")


def judge(name: str, figures: Figures) -> list[str]:
    """Print every promise of a script; returns those that are broken."""
    broken = []
    for promise in promises():
        if promise.script == name and promise.figure in figures:
            value = figures[promise.figure]
            verdict = verdict_of(promise, value)
            print(
                f"  {verdict:8} {promise.says}: {value:.2f} {promise.bound}"
                + (f" ({promise.pending})" if promise.pending else "")
            )
            if verdict == "BROKEN":
                broken.append(f"{name}: {promise.says}: {value:.2f}, promised {promise.bound}")
    return broken


def verdict_of(promise: Promise, value: float) -> str:
    """One word for a promise and what was measured."""
    if promise.holds(value):
        return "kept"
    return "pending" if promise.pending else "BROKEN"


def main(argv: list[str]) -> int:
    """Run what is asked for; the exit code is 1 when a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measure the promises beside containerd.")
    parser.add_argument("scripts", nargs="*", metavar="script", help=f"of: {', '.join((*SCRIPTS, *ALONE))} (all)")
    parser.add_argument("--quick", action="store_true", help="a fifth of the size: to try a script out")
    parser.add_argument("--null", action="store_true", help="a second containerd instead of ours: how much is noise")
    parser.add_argument("--no-store", action="store_true", help="keep no line in results/")
    options = parser.parse_args(argv)
    if os.geteuid() != 0:
        print("the measurements run real containers and need root", file=sys.stderr)
        return 2
    unknown = set(options.scripts) - {*SCRIPTS, *ALONE}
    if unknown:
        print(
            f"no such script: {', '.join(sorted(unknown))}; there are {', '.join((*SCRIPTS, *ALONE))}", file=sys.stderr
        )
        return 2
    broken: list[str] = []
    for name in options.scripts or (*SCRIPTS, *ALONE):
        if name in ALONE:
            if importlib.import_module(f"bench.{name}.__main__").main(ALONE[name]) != 0:
                broken.append(f"{name}: see its table")
            continue
        figures, sizes = run_script(name, quick=options.quick, null=options.null)
        show(name, figures)
        if not options.null:
            broken += judge(name, figures)
        if not (options.no_store or options.null or options.quick):
            store(name, figures, sizes)
    print("\n" + ("every promise that must hold is kept" if not broken else "broken:\n  " + "\n  ".join(broken)))
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted; all is taken away again", file=sys.stderr)
        sys.exit(130)
