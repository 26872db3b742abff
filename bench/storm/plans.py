"""What a storm does, decided by its seed alone: each container's life, and each stroke of the killer. Pure."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

DAEMON, KEEPER, SHIM = "daemon", "keeper", "shim"
KINDS = (DAEMON, KEEPER, SHIM)

JSON, RAW, TERMINAL = "json", "raw", "terminal"
# Of a hundred containers so many log in this way; those on a terminal by JSON lines, too.
LOGS = {JSON: 55, RAW: 30, TERMINAL: 15}

# How a life ends: by itself after its lines, by itself when told through a file, or by a signal of ours.
BRIEF, TOLD, TERM, KILL = "brief", "told", "term", "kill"
ENDS = {BRIEF: 30, TOLD: 30, TERM: 25, KILL: 15}
EXEC, PAUSE, UPDATE, LOOK = "exec", "pause", "update", "look"
ACTS = {EXEC: 55, PAUSE: 15, UPDATE: 10, LOOK: 20}

CODES = 120  # exit codes go round below those that mean something to a shell
ROTATED_BYTES, ROTATED_FILES = 16384, 200  # a log that is rotated often, and never so often that a line goes

# Lines are written in bursts by a builtin of the shell, so that a container costs next to nothing in between. One whose
# terminal hangs up notes which line it is at, and goes on.
BRIEF_SCRIPT = """\
n=0; trap 'echo $n >> /truth/{name}.hup' HUP; echo began >> /truth/{name}
while [ $n -lt {lines} ]; do echo "{name} $n"; n=$((n+1)); done
echo $n > /truth/{name}.lines; exit {code}"""
LONG_SCRIPT = """\
n=0; trap 'echo $n >> /truth/{name}.hup' HUP; trap 'over=1' TERM; echo began >> /truth/{name}
while [ -z "$over" ] && [ ! -e /truth/{name}.go ]; do
k=0; while [ $k -lt {lines} ]; do echo "{name} $n"; n=$((n+1)); k=$((k+1)); done
sleep {pause_s}
done
echo $n > /truth/{name}.lines; exit {code}"""
EXEC_SCRIPT = 'echo began >> /truth/{name}; echo "{name} says"; sleep {lasts_s}; exit {code}'


@dataclass(frozen=True)
class Act:
    """One thing done to a running container, after a pause."""

    kind: str
    pause_s: float
    code: int = 0  # of an exec
    lasts_s: float = 0.0


@dataclass(frozen=True)
class Life:
    """One container from its creation to its end."""

    name: str
    code: int
    log: str
    is_rotated: bool
    lines: int  # all of a brief life's; of the others in one burst
    pause_s: float  # between bursts
    acts: tuple[Act, ...]
    end: str

    @property
    def script(self) -> str:
        text = BRIEF_SCRIPT if self.end == BRIEF else LONG_SCRIPT
        return text.format(name=self.name, lines=self.lines, pause_s=self.pause_s, code=self.code)

    def exec_name(self, number: int) -> str:
        return f"{self.name}-x{number}"

    def exec_script(self, number: int) -> str:
        act = self.acts[number]
        return EXEC_SCRIPT.format(name=self.exec_name(number), lasts_s=act.lasts_s, code=act.code)


@dataclass(frozen=True)
class Stroke:
    """One stroke of the killer: after a pause, one process of each kind, or a share of the shims, or everything.

    ``luck`` (0 to 1) picks among the living in their order.
    """

    pause_s: float
    kinds: tuple[str, ...]
    luck: float
    share: float = 0.0  # of the shims; 0: one of them


def life_of(seed: int, slot: int, number: int, pace_s: float) -> Life:
    """The number-th life in a slot. ``pace_s``: about how long between two acts."""
    source = random.Random(f"{seed}/{slot}/{number}")
    end = _pick(source, ENDS)
    acts = () if end == BRIEF else tuple(_act(source, pace_s) for _ in range(source.randrange(1, 6)))
    return Life(
        name=f"c{slot}-{number}",
        code=source.randrange(CODES),
        log=_pick(source, LOGS),
        is_rotated=source.random() < 0.3,
        lines=source.randrange(1, 400) if end == BRIEF else source.randrange(5, 60),
        pause_s=round(source.uniform(0.2, 0.8), 2),
        acts=acts,
        end=end,
    )


def _act(source: random.Random, pace_s: float) -> Act:
    kind = _pick(source, ACTS)
    lasts_s = round(source.choice((0.0, 0.0, source.uniform(0.05, 1.0))), 2)
    return Act(kind, source.uniform(0, 2 * pace_s), source.randrange(CODES), lasts_s)


def _pick(source: random.Random, shares: dict[str, int]) -> str:
    return source.choices(list(shares), list(shares.values()))[0]


def strokes(seed: int, kinds: frozenset[str], rate: float) -> Iterator[Stroke]:
    """The killer's decisions, without end. ``rate``: strokes a second, on average.

    A restart of the daemon costs half a second of processor time and of the keeper as much, of a shim a few
    milliseconds: so there are five times as many of shims, and never two of daemon or keeper within a second.
    """
    source = random.Random(f"{seed}/killer")
    heavy_s = 0.0  # since the last stroke at daemon or keeper
    while True:
        pause_s = source.expovariate(rate)
        heavy_s += pause_s
        luck, chance, mix = source.random(), source.random(), source.random()
        heavy = tuple(kind for kind in (DAEMON, KEEPER) if kind in kinds)
        if SHIM in kinds and (not heavy or heavy_s < 1.0 or chance < 0.8):
            share = source.choice((0.1, 0.3, 1.0)) if chance < 0.06 else 0.0
            yield Stroke(pause_s, (SHIM,), luck, share)
            continue
        heavy_s = 0.0
        if len(kinds) > 1 and mix < 0.15:
            yield Stroke(pause_s, tuple(kind for kind in KINDS if kind in kinds), luck, share=1.0)  # all at once
        elif len(kinds) > 1 and mix < 0.35:
            together = tuple(source.sample(sorted(kinds), 2))
            yield Stroke(pause_s, together, luck)
        else:
            yield Stroke(pause_s, (source.choice(heavy),), luck)
