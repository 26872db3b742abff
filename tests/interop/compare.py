"""Are two plays of one scenario the same? Where not: is the difference known, and is it exactly as we said?"""

import json
import re
from dataclasses import dataclass
from typing import Any

Notes = list[tuple[str, Any]]


@dataclass(frozen=True)
class Accepted:
    """A difference we mean: what each side notes under a label (regular expressions), and why ours is better.

    Not `always` where the Go shim's answer depends on who is faster.
    """

    scenario: str
    label: str
    go: str
    ours: str
    why: str
    always: bool = True


def differences(
    scenario: str, go: Notes, ours: Notes, accepted: tuple[Accepted, ...]
) -> tuple[list[str], set[Accepted]]:
    """What differs and should not, in words, and which accepted differences were met."""
    found: list[str] = []
    met: set[Accepted] = set()
    known = [entry for entry in accepted if re.fullmatch(entry.scenario, scenario)]
    for label, left, right in paired(go, ours):
        if left == right:
            continue
        entry = next((entry for entry in known if fits(entry, label, left, right)), None)
        if entry is None:
            found.append(f"{label}\n    Go:   {shown(left)}\n    ours: {shown(right)}")
        else:
            met.add(entry)
    return found, met


def paired(go: Notes, ours: Notes) -> list[tuple[str, Any, Any]]:
    """Notes of the same label side by side, repeated labels by their number; None where a side has none."""
    left, right = numbered(go), numbered(ours)
    return [(label, left.get(label), right.get(label)) for label in dict.fromkeys([*left, *right])]


def numbered(notes: Notes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label, value in notes:
        name, count = label, 1
        while name in found:
            count += 1
            name = f"{label} #{count}"
        found[name] = value
    return found


def fits(entry: Accepted, label: str, left: Any, right: Any) -> bool:
    texts = ((entry.label, label), (entry.go, shown(left)), (entry.ours, shown(right)))
    return all(re.fullmatch(pattern, text, re.DOTALL) for pattern, text in texts)


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
