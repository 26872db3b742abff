"""What the doctor says: one finding at a time, each with what it means, what to do, and what --fix would do."""

import dataclasses
import enum
from collections.abc import Callable


class Severity(enum.IntEnum):
    """How bad it is. A note is worth knowing and no reason to act."""

    NOTE = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclasses.dataclass(frozen=True, slots=True)
class Repair:
    """What --fix does: in words, and as a function that makes sure once more, acts, and raises OSError if it cannot."""

    words: str
    act: Callable[[], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """`check` names the kind, `subject` the thing; `what` is the fact, `means` its consequence, `do` the advice."""

    check: str
    severity: Severity
    subject: str
    what: str
    means: str
    do: str
    repair: Repair | None = None

    def as_json(self) -> dict[str, str | None]:
        return {
            "check": self.check,
            "severity": self.severity.word,
            "subject": self.subject,
            "what": self.what,
            "means": self.means,
            "do": self.do,
            "fix": self.repair.words if self.repair is not None else None,
        }


def note(check: str, subject: str, what: str, means: str, do: str, repair: Repair | None = None) -> Finding:
    return Finding(check, Severity.NOTE, subject, what, means, do, repair)


def warning(check: str, subject: str, what: str, means: str, do: str, repair: Repair | None = None) -> Finding:
    return Finding(check, Severity.WARNING, subject, what, means, do, repair)


def error(check: str, subject: str, what: str, means: str, do: str, repair: Repair | None = None) -> Finding:
    return Finding(check, Severity.ERROR, subject, what, means, do, repair)


def exit_code(findings: "list[Finding]") -> int:
    """0: nothing to act on (notes may be there); 3: warnings; 4: errors. 1 and 2 are failures of the doctor itself."""
    worst = max((finding.severity for finding in findings), default=Severity.NOTE)
    return {Severity.NOTE: 0, Severity.WARNING: 3, Severity.ERROR: 4}[worst]
