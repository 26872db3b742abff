"""`shimctl shim upgrade`: running shims go on as the code this shimctl is from, in place."""

import argparse
import json
import os
import sys

from daemon.ctl.commands import Command
from daemon.ctl.errors import EXIT_INTERRUPTED, CtlError, UsageError, sentence_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.ctl.bundles import Bundle
    from ttrpc.api import shim

# The dry run, what is under way in the shim, and Python's start, all on a machine that is busy with the others'.
CALL_S = 120.0
UPGRADED, COULD, SKIPPED, FAILED = "upgraded", "could", "skipped", "failed"
COLOURS = {UPGRADED: "green", COULD: "green", SKIPPED: "yellow", FAILED: "red"}


class Outcome:
    """What came of one shim."""

    __slots__ = ("bundle", "check_ms", "from_version", "pause_ms", "reason", "result", "to_version")

    def __init__(self, bundle: "Bundle", result: str, reason: str = "") -> None:
        self.bundle = bundle
        self.result = result
        self.reason = reason
        self.from_version = self.to_version = ""
        self.pause_ms: float | None = None
        self.check_ms: float | None = None

    def as_json(self) -> "dict[str, object]":
        names = ("from_version", "to_version", "pause_ms", "check_ms", "result", "reason")
        made: dict[str, object] = {"namespace": self.bundle.namespace, "id": self.bundle.container_id}
        return made | {name: getattr(self, name) for name in names}


def upgrade(args: argparse.Namespace) -> int:
    """`shimctl shim upgrade`."""
    from daemon.ctl.bundles import bundles, find
    from daemon.ctl.client import say

    if bool(args.id) == args.all:
        raise UsageError("name one container, or give --all")
    if args.parallel < 1:
        raise UsageError("--parallel must be at least 1")
    request = request_of(args)
    chosen = list(bundles(args.state)) if args.all else [find(args, args.id)]
    outcomes: list[Outcome] = []
    try:
        outcomes.extend(_each(chosen, request, args.parallel))
    except KeyboardInterrupt:
        say(f"interrupted: {len(outcomes)} of {len(chosen)} are done; what had not begun goes on as it was")
        is_interrupted = True
    else:
        is_interrupted = False
    outcomes.sort(key=lambda outcome: (outcome.bundle.namespace, outcome.bundle.container_id))
    if args.json:
        print(json.dumps([outcome.as_json() for outcome in outcomes], indent=2))
    else:
        _print(outcomes)
    if is_interrupted:
        return EXIT_INTERRUPTED
    return 1 if any(outcome.result == FAILED for outcome in outcomes) else 0


def request_of(args: argparse.Namespace) -> "shim.UpgradeRequest":
    """Our own interpreter and modules, or another interpreter's that has shimd installed.

    Raises: CtlError when that has not.
    """
    from ttrpc.api import shim

    python = os.path.abspath(args.python) if args.python else sys.executable
    paths = _paths_of(python)
    if args.code:
        paths[0] = os.path.abspath(args.code)
    return shim.UpgradeRequest(python=python, paths=paths, dry_run=args.dry_run)


def _paths_of(python: str) -> "list[str]":
    import subprocess

    code = "import json; from shim.launcher import module_paths; print(json.dumps(module_paths()))"
    try:
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CtlError(
            f"{python} cannot be run: {getattr(error, 'strerror', None) or error}", hint="--python names an interpreter"
        ) from None
    if done.returncode != 0:
        words = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise CtlError(f"{python} has no shimd: {words}", hint=f"{python} -m pip install shimd")
    paths: list[str] = json.loads(done.stdout)
    return paths


def _each(chosen: "list[Bundle]", request: "shim.UpgradeRequest", parallel: int) -> "Iterator[Outcome]":
    """Some at a time, so that the machine has something left for the containers; the first failure stops nobody.

    Daemon threads: whoever stops listening (Ctrl-C) waits for none of those under way, and no other begins.
    """
    from queue import Empty, SimpleQueue
    from threading import Thread

    from daemon.ctl.tables import is_tty

    todo: SimpleQueue[Bundle] = SimpleQueue()
    done: SimpleQueue[Outcome] = SimpleQueue()
    is_over = False

    def work() -> None:
        while not is_over:
            try:
                bundle = todo.get_nowait()
            except Empty:
                return
            try:
                done.put(one(bundle, request))
            except Exception as error:  # noqa: BLE001 - told, or somebody would wait for it for ever
                done.put(Outcome(bundle, FAILED, repr(error)))

    for bundle in chosen:
        todo.put(bundle)
    for _ in range(min(parallel, len(chosen))):
        Thread(target=work, daemon=True).start()
    shows = is_tty(sys.stderr) and len(chosen) > 1
    try:
        for count in range(1, len(chosen) + 1):
            outcome = done.get()
            if shows:
                print(f"\r{count} of {len(chosen)}", end="", file=sys.stderr, flush=True)
            yield outcome
    finally:
        is_over = True
        if shows:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def one(bundle: "Bundle", request: "shim.UpgradeRequest") -> Outcome:
    """Ask one shim. Raises nothing: what goes wrong is the outcome."""
    from daemon.ctl.session import SHIM
    from ttrpc.errors import StatusError
    from ttrpc.status import Code

    if bundle.is_foreign:
        return Outcome(bundle, SKIPPED, "its shim is not shimd's")
    if not bundle.address:
        return Outcome(bundle, SKIPPED, "it has no shim")
    try:
        answer = bundle.call(SHIM, "Upgrade", request, timeout_s=CALL_S)
    except StatusError as error:
        if error.code == Code.UNIMPLEMENTED:
            return Outcome(bundle, SKIPPED, "its release cannot: it is upgraded when its container is started anew")
        if error.code == Code.FAILED_PRECONDITION and "about to end" in error.message:
            return Outcome(bundle, SKIPPED, error.message)
        return Outcome(bundle, FAILED, error.message)
    except CtlError as error:
        return Outcome(bundle, FAILED, sentence_of(error)[0])
    made = Outcome(bundle, COULD if request.dry_run else UPGRADED, answer.found)
    made.from_version, made.to_version = answer.from_version, answer.to_version
    made.check_ms = answer.check_us / 1000
    made.pause_ms = None if request.dry_run else answer.pause_us / 1000
    return made


def _print(outcomes: "list[Outcome]") -> None:
    from daemon.ctl.tables import Cell, Column, print_table

    rows = []
    for outcome in outcomes:
        versions = f"{outcome.from_version} → {outcome.to_version}" if outcome.to_version else ""
        pause = f"{outcome.pause_ms:.0f}" if outcome.pause_ms is not None else ""
        result = Cell(outcome.result, COLOURS[outcome.result])
        rows.append([outcome.bundle.namespace, outcome.bundle.container_id, versions, pause, result, outcome.reason])
    columns = [Column("NAMESPACE"), Column("ID", least=12), Column("VERSION"), Column("PAUSE MS", right=True)]
    print_table([*columns, Column("RESULT"), Column("DETAIL", least=16)], rows)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", nargs="?", default="")
    parser.add_argument("--all", action="store_true", help="every shim below the state directory, of every namespace")
    parser.add_argument("--dry-run", action="store_true", help="only have the new code read each shim's state")
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="so many at a time (default 4)")
    parser.add_argument("--python", default="", metavar="PATH", help="an interpreter that has the shimd to go on with")
    parser.add_argument("--code", default="", metavar="DIR", help="where the packages shim and ttrpc are instead")
    parser.add_argument("--json", action="store_true", help="one array")


UPGRADE = Command(
    upgrade,
    usage="shimctl shim upgrade [OPTIONS] ID | --all",
    description="""\
Asks the shim itself, so it works with the daemon down. A running shim goes on as the code this shimctl is from (or that
of --python), in place: the same pid, children, connections and output; calls wait for the pause that is told. The new
code first reads the state in a dry run; what it cannot read, and whatever fails later, leaves the old code at work.
Some seconds later a copy of the keeper's template follows the shim: another pid, and a third of the memory.
Exit code 1 when one failed; shims that are not shimd's are skipped.
""",
    examples="  shimctl shim upgrade web\n  shimctl shim upgrade --all --dry-run\n",
    options=_options,
)
