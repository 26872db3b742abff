"""`shimctl doctor`: gathers facts, has them judged, repairs if it is told to, and looks again."""

import argparse
import dataclasses
import os

from daemon import configfile
from daemon.config import DEFAULT_PATH, Config
from daemon.ctl.commands import Command
from daemon.ctl.doctor import connector, facts, finding, host, leftovers, store, tasks, telling
from daemon.ctl.doctor.finding import ERROR, Finding, Kind, command
from daemon.ctl.doctor.telling import Done, Report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ASK_S = 5.0
ROUNDS = 4
CONFIG = Kind(
    "config", ERROR,
    "the daemon will not start with it; one that runs goes on with what it has read",
    "correct it, and check it before the daemon is started",
)  # fmt: skip


def examine(args: argparse.Namespace) -> Report:
    """Look at everything once, and judge it. Blocks: about a second; a daemon that does not answer costs ASK_S."""
    config, findings = configured(args)
    info, trouble, records = ask_daemon(config.socket_path)
    if info is not None:  # one that runs knows best which directories are its own
        config = dataclasses.replace(config, state_dir=info.state_dir, root_dir=info.root_dir)
    seen = facts.gather(config, info, trouble, records)
    for check in (*tasks.CHECKS, *leftovers.CHECKS):
        findings += check(seen)
    findings += (
        [seen.store_trouble] if seen.store_trouble is not None else store.check(config.database_path, seen.store)
    )
    if seen.store is None and seen.store_trouble is None and seen.bundles:
        said = f"there is none, but there are {len(seen.bundles)} bundles"
        findings.append(store.ELSEWHERE.of(config.database_path, said))
    runtimes = {runtime.runc or "runc" for runtime in config.runtimes.values()}
    features = host.features(host.Host(), sorted(runtimes))
    features += connector.feature(features)
    findings += host.check(host.Host(), config, features, info.pid if info is not None else 0, len(seen.shims))
    findings.sort(key=lambda one: -one.severity)
    return Report(findings, features, info, config)


def ask_daemon(path: str) -> "tuple[Any, str, tuple[Any, ...]]":
    """(who it is, why not, its shims). No patience: a daemon that is not there is a finding."""
    from daemon.ctl.client import SHIMD
    from daemon.ctl.errors import sentence_of
    from ttrpc.api import shimd
    from ttrpc.blocking import BlockingClient
    from ttrpc.errors import TtrpcError

    try:
        with BlockingClient.connect(path) as client:
            info = client.call(SHIMD, "Info", shimd.InfoRequest(), timeout_s=ASK_S)
            found = client.call(SHIMD, "Shims", shimd.ShimsRequest(all_namespaces=True), timeout_s=ASK_S)
    except FileNotFoundError:
        return None, "the daemon does not run: there is no socket", ()
    except ConnectionRefusedError:
        return None, "the daemon does not run: nobody listens on its socket", ()
    except (OSError, TtrpcError) as failure:
        return None, f"the daemon does not answer: {sentence_of(failure)[0]}", ()
    return info, "", tuple(found.shims)


def configured(args: argparse.Namespace) -> "tuple[Config, list[Finding]]":
    """The configuration with what the command line says instead, and what is wrong with it."""
    from daemon.ctl.__main__ import DEFAULT_ADDRESS, DEFAULT_STATE

    findings: list[Finding] = []
    path = args.config or DEFAULT_PATH
    try:
        config = configfile.load(path, may_be_missing=not args.config)
    except configfile.ConfigError as failure:
        config = Config()
        said = str(failure).removeprefix(f"{path}: ")
        findings.append(CONFIG.of(path, said, command("shimd", "config", "check", path)))
    changes: dict[str, Any] = {}
    if args.state != DEFAULT_STATE:
        changes["state_dir"] = os.path.abspath(args.state)
    if args.root:
        changes["root_dir"] = os.path.abspath(args.root)
    if args.address != DEFAULT_ADDRESS:
        changes["socket"] = dataclasses.replace(config.socket, path=args.address.removeprefix("unix://"))
    return dataclasses.replace(config, **changes), findings


def repair(findings: "list[Finding]") -> "list[Done]":
    """Do every repair there is."""
    done = []
    for one in findings:
        if one.repair is None:
            continue
        try:
            one.repair.act()
        except FileNotFoundError:
            done.append(Done(one))  # gone with an earlier repair
        except OSError as failure:
            done.append(Done(one, f"{failure.strerror or failure}: {failure.filename or one.subject}"))
        else:
            done.append(Done(one))
    return done


def doctor(args: argparse.Namespace) -> int:
    """`shimctl doctor`."""
    if os.geteuid() != 0:
        from daemon.ctl.errors import CtlError

        raise CtlError("only root sees enough of shims and their files", hint="sudo shimctl doctor")
    report = examine(args)
    done: list[Done] = []
    for _ in range(ROUNDS if args.fix else 0):  # one repair may uncover the next: a bundle is left by its shim
        repaired = repair(report.findings)
        done += repaired
        if not repaired:
            break
        report = examine(args)
        if any(one.failure for one in repaired):
            break
    if args.json:
        telling.print_json(report, done)
    else:
        telling.print_all(report, done if args.fix else None)
    return finding.exit_code(report.findings)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fix", action="store_true", help="repair what is provably ours and dead; asks nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--config", metavar="FILE", help=f"the daemon's configuration (default {DEFAULT_PATH})")
    parser.add_argument(
        "--root", metavar="DIR", help="its root directory, when it is down and the configuration is not it"
    )


DOCTOR = Command(
    doctor,
    description="""\
Look at this host and explain: containers, shims, bundles, mounts, cgroups, sockets and pins that do not belong
together; shims that hang; what the kernel lacks and what is missing without it; room on disks, in tables of files and
processes; permissions, configuration, the store, versions. It works with the daemon up and down, asks no shim and
changes nothing.

With --fix it repairs what is provably ours and dead, says what it did, and looks again. What lives is never touched,
but that a stopped shim or keeper is continued.

Exit codes: 0 nothing to act on, 3 warnings, 4 errors; 1 the doctor failed, 2 wrong usage. With --fix: of what is left.
""",
    examples="""\
  shimctl doctor
  shimctl doctor --fix
  shimctl doctor --json | jq '.findings[] | select(.severity == "error")'
  shimctl doctor --config /etc/shimd/config.toml      (the daemon is down, and has directories of its own)
""",
    options=_options,
)
