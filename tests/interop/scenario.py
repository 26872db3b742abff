"""What a scenario is, and the list of all of them."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.interop.play import Play

Order = str  # "sequence" | "by process" | "unwatched"


@dataclass(frozen=True)
class Scenario:
    """One script of operations.

    `order` says what of the events is the same in every run: their whole sequence, or only each process's own.
    `is_short` puts it into `make test`. `is_recorded` sets a recorder between containerd and the shims.
    """

    name: str
    script: Callable[[Play], None]
    order: Order
    is_short: bool
    is_recorded: bool

    @property
    def subject(self) -> str:
        return (self.script.__doc__ or "").strip().partition("\n")[0]


ALL: dict[str, Scenario] = {}


def scenario(
    *, order: Order = "sequence", short: bool = False, recorded: bool = False
) -> Callable[[Callable[[Play], None]], Callable[[Play], None]]:
    """Enter a function of a play into the list; its docstring says what it is about."""

    def enter(script: Callable[[Play], None]) -> Callable[[Play], None]:
        assert script.__doc__, f"{script.__name__} does not say what it is about"
        assert script.__name__ not in ALL, f"two scenarios are called {script.__name__}"
        ALL[script.__name__] = Scenario(script.__name__, script, order, short, recorded)
        return script

    return enter
