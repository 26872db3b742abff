"""`shimctl daemon upgrade`: another program takes the daemon's place while everything runs on."""

import argparse
import json
import os
import time

from daemon.ctl.commands import Command
from daemon.ctl.errors import CtlError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from daemon.ctl.client import Daemon
    from ttrpc.api import shimd

MS_NS = 1_000_000
OUTCOME_S = 60.0  # beyond the daemon's own limits for the hand-over and for taking everything back


def upgrade(args: argparse.Namespace) -> int:
    """`shimctl daemon upgrade`."""
    from daemon.ctl.client import SHIMD, open_daemon
    from ttrpc.api import shimd
    from ttrpc.errors import ConnectionLost

    request = shimd.UpgradeRequest(id=os.urandom(8).hex(), dry_run=args.dry_run)
    if args.program:
        request.program = os.path.abspath(args.program)
    told: list[shimd.UpgradeProgress] = []
    with open_daemon(args) as daemon:
        before = daemon.call(SHIMD, "Info", shimd.InfoRequest())
        client = daemon.connect()
        try:
            for progress in client.open_stream(SHIMD, "Upgrade", request, metadata=daemon.metadata):
                told.append(progress)
                if not args.json:
                    _tell(before, progress, is_last=args.dry_run)
        except ConnectionLost:
            daemon.lose()
        if args.dry_run:
            return _answer_dry_run(args, before, told)
        record = _outcome(daemon, request.id)
    if not record.done:
        raise CtlError(
            f"not upgraded: {record.reason or 'the reason is not known'}",
            hint=f"shimd {record.from_version or before.version} serves on with pid {before.pid}; "
            "its log says more: journalctl -u shimd",
        )
    if args.json:
        print(json.dumps(_as_json(record)))
    else:
        print(
            f"upgraded: shimd {record.from_version} → {record.to_version}, pid {record.from_pid} → {record.to_pid}; "
            f"new connections waited {record.gap_ns / MS_NS:.0f} ms at most, none was refused"
        )
    return 0


def _tell(before: "shimd.InfoResponse", progress: "shimd.UpgradeProgress", *, is_last: bool) -> None:
    from ttrpc.api.shimd import UpgradeProgress

    if progress.step == UpgradeProgress.STEP_CHECKED:
        print(f"checked: shimd {before.version} → {progress.version}; {_schema_words(progress)}", flush=True)
        if is_last:
            print("nothing was changed; without --dry-run it would take over now")
    elif progress.step == UpgradeProgress.STEP_STARTED:
        print(f"started: pid {progress.pid}", flush=True)
    elif progress.step == UpgradeProgress.STEP_READY:
        print("ready: it waits for the store", flush=True)
    elif progress.step == UpgradeProgress.STEP_HANDING_OVER:
        print("handing over …", flush=True)


def _schema_words(progress: "shimd.UpgradeProgress") -> str:
    if progress.schema == progress.writes_schema:
        words = f"the store keeps its schema {progress.schema}"
    else:
        words = f"the store's schema goes from {progress.schema} to {progress.writes_schema}"
    if progress.oldest_reader > progress.schema:
        return f"{words}, and there is no way back: programs for schema {progress.schema} cannot read it"
    return f"{words}; programs that know schema {progress.oldest_reader} or later can take it back"


def _answer_dry_run(args: argparse.Namespace, before: "shimd.InfoResponse", told: "list[shimd.UpgradeProgress]") -> int:
    if not told:
        raise CtlError("the daemon went away before the check was done", hint="try again")
    if args.json:
        found = {"from_version": before.version, "to_version": told[0].version, "schema": told[0].schema}
        print(json.dumps({**found, "writes_schema": told[0].writes_schema, "oldest_reader": told[0].oldest_reader}))
    return 0


def _outcome(daemon: "Daemon", upgrade_id: str) -> "shimd.UpgradeRecord":
    """What came of it, said by whoever serves now.

    Raises: CtlError when nobody knows: both processes died, and another was started.
    """
    from daemon.ctl.client import SHIMD
    from ttrpc.api import shimd

    until = time.monotonic() + OUTCOME_S
    record = daemon.call(SHIMD, "Info", shimd.InfoRequest(), timeout_s=until - time.monotonic()).last_upgrade
    if record.id != upgrade_id:
        raise CtlError(
            "the daemon was started anew during the upgrade: which program serves is not known",
            hint="shimctl daemon info; its log says more: journalctl -u shimd",
        )
    found: shimd.UpgradeRecord = record
    return found


def _as_json(record: "shimd.UpgradeRecord") -> "dict[str, Any]":
    names = ("from_version", "to_version", "from_pid", "to_pid")
    return {**{name: getattr(record, name) for name in names}, "gap_ms": record.gap_ns / MS_NS}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--program", metavar="PATH", help="the new shimd (default: what the running one was started as)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only ask it whether it could take over")
    parser.add_argument("--json", action="store_true", help="the outcome as one JSON object, no progress")


UPGRADE = Command(
    upgrade,
    description="""\
Have another program take the daemon's place: a newer release, an older one, or the same with a changed configuration.

The new program first shows that it can read configuration and store, without touching them (--dry-run ends there).
Then it makes itself ready while the old one serves, which finishes the calls under way and hands over its sockets.
Nobody is refused: who connects meanwhile waits; connections that are idle, or wait for an exit, stay as they are.
If the new program dies or takes too long at any step, the old one serves on and the reason is told.

Under systemd the new process becomes the unit's main process.
""",
    examples="""\
  shimctl daemon upgrade
  shimctl daemon upgrade --program /opt/shimd-0.2/bin/shimd --dry-run
""",
    options=_options,
)
