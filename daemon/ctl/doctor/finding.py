"""Kinds of findings, each with what it means and what to do, and the single findings of a kind."""

import dataclasses
import enum
import shlex
from collections.abc import Callable


class Severity(enum.IntEnum):
    """How bad it is. A note is worth knowing and no reason to act."""

    NOTE = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        return self.name.lower()


NOTE, WARNING, ERROR = Severity


@dataclasses.dataclass(frozen=True, slots=True)
class Repair:
    """What --fix does: in words, and as a function that makes sure once more, acts, and raises OSError if it cannot."""

    words: str
    act: Callable[[], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What may be found. `check` is its name, `means` its consequence, `do` the advice: of no single thing."""

    check: str
    severity: Severity
    means: str
    do: str

    def of(self, subject: str, what: str, *run: str, repair: Repair | None = None) -> "Finding":
        """One finding: of which thing, the fact, and commands that do what is advised, to be pasted as they are."""
        return Finding(self, subject, what, run, repair)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """`subject` names the thing, `what` is the fact; its kind says the rest."""

    kind: Kind
    subject: str
    what: str
    run: tuple[str, ...] = ()
    repair: Repair | None = None

    @property
    def check(self) -> str:
        return self.kind.check

    @property
    def severity(self) -> Severity:
        return self.kind.severity

    def as_json(self) -> dict[str, object]:
        return {
            "check": self.check,
            "severity": self.severity.word,
            "subject": self.subject,
            "what": self.what,
            "means": self.kind.means,
            "do": self.kind.do,
            "run": list(self.run),
            "fix": self.repair.words if self.repair is not None else None,
        }


def command(*words: str) -> str:
    """A command line that a shell takes apart into just these words. Pure."""
    return shlex.join(words)


def shimctl(ns: str, *words: str) -> str:
    """A command of shimctl in a namespace. Pure."""
    return command("shimctl", "-n", ns, *words)


def exit_code(findings: "list[Finding]") -> int:
    """0: nothing to act on (notes may be there); 3: warnings; 4: errors. 1 and 2 are failures of the doctor itself."""
    worst = max((finding.severity for finding in findings), default=Severity.NOTE)
    return {Severity.NOTE: 0, Severity.WARNING: 3, Severity.ERROR: 4}[worst]
