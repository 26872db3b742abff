"""What should be, against what is found: each thing once, none lost, none doubled."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field


@dataclass
class Account:
    """One kind of thing. Both sides are counted by key, so a wrong one is a lost and a doubled one."""

    name: str
    expected: Counter[Hashable] = field(default_factory=Counter)
    found: Counter[Hashable] = field(default_factory=Counter)

    @property
    def lost(self) -> Counter[Hashable]:
        return self.expected - self.found

    @property
    def doubled(self) -> Counter[Hashable]:
        return self.found - self.expected

    def is_balanced(self) -> bool:
        return self.expected == self.found


@dataclass
class Ledger:
    """All accounts of one run."""

    accounts: list[Account] = field(default_factory=list)

    def account(self, name: str, expected: Iterable[Hashable], found: Iterable[Hashable]) -> Account:
        """Open an account with both its sides."""
        self.accounts.append(Account(name, Counter(expected), Counter(found)))
        return self.accounts[-1]

    def is_balanced(self) -> bool:
        return all(account.is_balanced() for account in self.accounts)

    def table(self) -> str:
        """One line per account."""
        lines = [f"{'':34}{'expected':>10}{'found':>10}{'lost':>8}{'doubled':>9}"]
        for each in self.accounts:
            counts = (each.expected, each.found, each.lost, each.doubled)
            numbers = [sum(counter.values()) for counter in counts]
            lines.append("{:34}{:>10}{:>10}{:>8}{:>9}".format(each.name, *numbers))
        return "\n".join(lines)

    def differences(self, most: int = 10) -> str:
        """The first few of what is lost or doubled, account by account."""
        lines = []
        for each in self.accounts:
            lines += [f"lost in {each.name}: {key} ({count})" for key, count in each.lost.most_common(most)]
            lines += [f"doubled in {each.name}: {key} ({count})" for key, count in each.doubled.most_common(most)]
        return "\n".join(lines)

    def figures(self) -> dict[str, float]:
        """The same as numbers for results/."""
        found: dict[str, float] = {}
        for each in self.accounts:
            key = "_".join(re.findall(r"\w+", each.name))
            found[f"{key}_expected"] = sum(each.expected.values())
            found[f"{key}_lost"] = sum(each.lost.values())
            found[f"{key}_doubled"] = sum(each.doubled.values())
        return found
