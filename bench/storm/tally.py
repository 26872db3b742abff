"""The counts of a storm, and whether they are as they must be."""

import threading
from collections import Counter
from dataclasses import dataclass, field

# Everything that must be none at the end; what counts in the verdict.
FAULTS = (
    "statuses_wrong", "exec_statuses_wrong", "lines_lost", "lines_doubled", "lines_strange", "events_lost",
    "events_doubled", "events_strange", "pids_changed", "runs_wrong", "stuck", "refused", "leaks", "daemon_ends",
)  # fmt: skip


@dataclass
class Tally:
    """What all lives share. `add` may be called by any thread."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # statuses nobody could know, each with its reason
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, number: int = 1) -> None:
        with self._lock:
            self.counts[name] += number

    def fail(self, name: str, words: str, number: int = 1) -> None:
        """Count a fault, and keep what is to be said of it."""
        with self._lock:
            self.counts[name] += number
            self.failures.append(f"{name.replace('_', ' ')}: {words}")

    def faults(self) -> dict[str, int]:
        """The faults there are."""
        return {name: self.counts[name] for name in FAULTS if self.counts[name]}

    @property
    def is_clean(self) -> bool:
        """Nothing wrong, lost, doubled, stuck or left behind; and of unknown ones each has its reason."""
        unknown = self.counts["statuses_unknown"] + self.counts["exec_statuses_unknown"]
        return not self.faults() and unknown == len(self.unknown)

    def line(self) -> str:
        """One readable line."""
        c = self.counts
        return (
            f"{c['kills']} kills ({c['kills_daemon']} daemon, {c['kills_keeper']} keeper, {c['kills_shim']} shim); "
            f"{c['containers']} containers; "
            f"statuses {c['statuses_exact']} exact, {c['statuses_unknown']} unknown, {c['statuses_wrong']} wrong; "
            f"execs {c['exec_statuses_exact']} exact, {c['exec_statuses_unknown']} unknown, "
            f"{c['exec_statuses_wrong']} wrong; "
            f"lines {c['lines_expected']} expected, {c['lines_found']} found, {c['lines_lost']} lost, "
            f"{c['lines_doubled']} doubled, {c['lines_unheld']} gone with their last holder; "
            f"of terminals {c['terminal_lines_expected']} expected, {c['terminal_lines_found']} found, "
            f"{c['terminal_lines_unheld']} gone with their last holder; "
            f"events {c['events_expected']} expected, {c['events_found']} found, {c['events_doubled']} doubled; "
            f"{c['leaks']} leaks"
        )

    def figures(self) -> dict[str, int]:
        """The same and the rest, for a machine."""
        return {**dict.fromkeys(FAULTS, 0), **dict(sorted(self.counts.items()))}
