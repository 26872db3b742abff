"""What the doctor says, for people and for programs: what --fix did, a table, then each kind explained once."""

import dataclasses
import json
import sys

from daemon.config import Config
from daemon.ctl.doctor.finding import Finding, Kind, Severity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from daemon.ctl.doctor.host import Feature

COLOURS = {Severity.NOTE: "grey", Severity.WARNING: "yellow", Severity.ERROR: "red"}
WIDEST = 120  # of running text; a command or a path goes on as far as it is long
SHOWN_MAX = 10  # things of one kind that are explained; the table names them all


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What one look has shown."""

    findings: list[Finding]
    features: "list[Feature]"
    daemon: "Any"
    config: Config


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """A repair that --fix did, or why it could not."""

    finding: Finding
    failure: str = ""

    @property
    def words(self) -> str:
        return self.finding.repair.words if self.finding.repair is not None else ""


def print_json(report: Report, done: "list[Done]") -> None:
    """Everything, as one object."""
    info = report.daemon
    made = {
        "daemon": None if info is None else {"version": info.version, "pid": info.pid},
        "root_dir": report.config.root_dir,
        "state_dir": report.config.state_dir,
        "features": [
            {
                "name": one.name,
                "present": one.is_present,
                "detail": one.detail,
                "without": one.without,
                "remedy": one.remedy,
            }
            for one in report.features
        ],
        "findings": [one.as_json() for one in report.findings],
        "fixed": [{**one.finding.as_json(), "failure": one.failure} for one in done],
    }
    print(json.dumps(made, indent=2))


def print_all(report: Report, done: "list[Done] | None") -> None:
    """For people. ``done`` is None without --fix. Order: the worst first; at the end what is next."""
    if done is not None:
        _tell_repairs(done)
    info = report.daemon
    running = f"shimd {info.version}, pid {info.pid}" if info is not None else "no daemon"
    _say(f"{running}; root {report.config.root_dir}, state {report.config.state_dir}")
    has = [f"{one.name} ({one.detail})" if one.detail else one.name for one in report.features if one.is_present]
    _say("has: " + ", ".join(has))
    if not report.findings:
        print("nothing is wrong here")
        return
    print()
    _print_table(report.findings)
    for kind, findings in by_kind(report.findings):
        _explain(kind, findings)
    print()
    _say(summary(report.findings, is_fixing=done is not None))


def _tell_repairs(done: "list[Done]") -> None:
    for one in done:
        _say(f"could not {one.words}: {one.failure}" if one.failure else f"fixed: {one.words}")
    if not done:
        print("there is nothing here that --fix repairs")
    print()


def _print_table(findings: "list[Finding]") -> None:
    from daemon.ctl.tables import Cell, Column, print_table

    rows = [
        [Cell(one.severity.word, COLOURS[one.severity]), one.check, one.subject, one.what.splitlines()[0]]
        for one in findings
    ]
    subject = Column("SUBJECT", least=12, keeps_end=True)  # of a path the end says more
    print_table([Column("SEVERITY"), Column("CHECK"), subject, Column("WHAT", least=24)], rows)


def by_kind(findings: "list[Finding]") -> "list[tuple[Kind, list[Finding]]]":
    """Findings that mean the same, together, in the order of the first of each. Pure."""
    made: dict[Kind, list[Finding]] = {}
    for one in findings:
        made.setdefault(one.kind, []).append(one)
    return list(made.items())


def _explain(kind: Kind, findings: "list[Finding]") -> None:
    """What it is, what it means and what to do about it; commands on lines of their own, as they can be pasted."""
    print()
    shown = findings[:SHOWN_MAX]
    left = len(findings) - len(shown)
    if len(findings) == 1:
        _say(f"{kind.severity.word}: {kind.check}: {findings[0].subject}")
        for line in findings[0].what.splitlines():
            _say(line, indent="  ")
    else:
        _say(f"{kind.severity.word}: {kind.check}: {len(findings)} of them")
        for one in shown:
            _say(f"{one.subject}: {one.what.splitlines()[0]}", indent="  ")
        if left:
            _say(f"and {left} more: see the table, or --json", indent="  ")
    _say(f"means: {kind.means}", indent="  ")
    _say(f"do: {kind.do}", indent="  ")
    for line in dict.fromkeys(line for one in shown for line in one.run):
        _say(line, indent="      ", is_command=True)
    for one in shown:
        if one.repair is not None and not one.run:
            _say(f"--fix: {one.repair.words}", indent="  ")
    if any(one.repair is not None and one.run for one in shown):
        _say("--fix does so", indent="  ")


def summary(findings: "list[Finding]", *, is_fixing: bool) -> str:
    """How many there are of which severity, and what can be done about them at once. Pure."""
    counts = {one: sum(each.severity is one for each in findings) for one in reversed(Severity)}
    words = ", ".join(f"{count} {one.word}{'s' if count > 1 else ''}" for one, count in counts.items() if count)
    fixable = sum(one.repair is not None for one in findings)
    if fixable and is_fixing:
        return f"{words}; {fixable} could not be repaired"
    if fixable:
        return f"{words}; --fix repairs {fixable} of them"
    return words if counts[Severity.NOTE] < len(findings) else f"{words}, nothing to act on"


def _say(text: str, indent: str = "", *, is_command: bool = False) -> None:
    """A text that fits the terminal: it goes on in the next line; a path or a command stays in one."""
    import textwrap

    from daemon.ctl.tables import plain, terminal_width

    if is_command:
        print(indent + plain(text))
        return
    width = min(terminal_width(sys.stdout) or WIDEST, WIDEST)
    print(
        textwrap.fill(
            plain(text),
            width,
            initial_indent=indent,
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
