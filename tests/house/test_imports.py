"""Who may import whom. One way only: ttrpc ← shim, ttrpc ← daemon; and what would cost each shim memory stays out."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from shim.keeper.code import our_modules
from tests.support.source import Module, module, modules

# Each costs a cold shim 0.5 to 3 MB of private memory, and there is one shim per container.
COSTLY = {"typing", "dataclasses", "subprocess", "logging", "asyncio", "pathlib", "trio", "psutil", "concurrent"}
# What protobuf itself pulls in; our code still does not import it, for the day protobuf stops.
PULLED_IN_ANYWAY = {"typing"}

NOT_IN_SHIM = ("ttrpc.aio", "ttrpc.aio_client", "ttrpc.aio_server", "ttrpc.blocking")
SHIM_PACKAGES = {"ttrpc", "shim", "google", "prctl", "cgroupspy"}
UNDER_CORE = ("shim.core", "shim.bundle", "shim.errors", "shim.faults")
SHARED_WITH_DAEMON = "shim.policy"  # pure arithmetic, imports nothing
SANS_IO = {"ttrpc.frames", "ttrpc.streams", "ttrpc.connection", "ttrpc.status", "ttrpc.errors"}
DOES_IO = {"socket", "select", "selectors", "ssl", "signal", "threading", "google", "time"}
# Of the daemon, the client takes what is pure: the spec builder and its like. The rest is another process.
LAZY_IN_CTL = {"psutil", "sqlite3"}  # for figures of the host, and for the doctor
NOT_IN_PURE = {"trio", "sqlite3", "psutil", "asyncio", "prctl", "cgroupspy"}


def package(name: str) -> str:
    return name.partition(".")[0]


def is_within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


def import_breaches(module: Module) -> Iterator[str]:
    """Every import of the module the rules forbid, in words."""
    for name, line in module.imports():
        if (reason := why_not(module.name, name)) and not is_lazy(module, name, line):
            yield f"{module.path}:{line} imports {name}: {reason}"


def is_lazy(module: Module, name: str, line: int) -> bool:
    """Whether the command line loads this package only in a function of the command that needs it."""
    if package(name) not in LAZY_IN_CTL or not is_within(module.name, "daemon.ctl"):
        return False
    return any(function.lineno < line <= (function.end_lineno or 0) for _, function in module.functions())


def why_not(importer: str, name: str) -> str | None:
    """Why this module may not import that name, or None."""
    top = package(name)
    stdlib = top in sys.stdlib_module_names or top == "__future__"
    if package(importer) == "ttrpc":
        return why_not_in_ttrpc(importer, name, top, stdlib)
    if package(importer) == "shim":
        if top in COSTLY:
            return f"{top} costs every shim memory"
        if top == "shim" and is_within(importer, "shim.core") and not any(is_within(name, it) for it in UNDER_CORE):
            return "the core knows no container"
        if any(is_within(name, parent) for parent in NOT_IN_SHIM):
            return "a shim serves; it is nobody's client and has no trio"
        return None if stdlib or top in SHIM_PACKAGES else f"a shim runs on {', '.join(sorted(SHIM_PACKAGES))} alone"
    if package(importer) == "daemon":
        if top == "shim" and not is_within(name, SHARED_WITH_DAEMON):
            return "the daemon talks to a shim, it does not contain one"
        if is_within(importer, "daemon.ctl"):
            return why_not_in_ctl(name, top)
    return None


def why_not_in_ttrpc(importer: str, name: str, top: str, stdlib: bool) -> str | None:
    if top in ("shim", "daemon"):
        return "the wire knows no containers"
    if importer == "ttrpc.aio" or importer.startswith("ttrpc.aio_"):  # one driver in several modules
        return None
    if importer == "ttrpc.api.generate":  # a tool, run by `make proto`
        return None
    if top in COSTLY:
        return f"{top} costs every shim memory" if top != "trio" else "only ttrpc.aio knows trio"
    if importer in SANS_IO and top in DOES_IO:
        return "the core does no I/O and tells no time"
    return None if stdlib or top in ("ttrpc", "google") else "ttrpc stands on the standard library and protobuf"


def why_not_in_ctl(name: str, top: str) -> str | None:
    if top in ("trio", "psutil", "sqlite3") or is_within(name, "ttrpc.aio"):
        return "the command line starts fast and is a client only"
    return None


@pytest.mark.parametrize(
    ("importer", "text", "is_allowed"),
    [
        ("shim.task.runc", "import os\nfrom ttrpc.api import task", True),
        ("shim.task.runc", "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    import typing", True),
        ("shim.task.runc", "import typing", False),
        ("shim.task.runc", "def f():\n    import subprocess", False),
        ("shim.task.runc", "from daemon import spec", False),
        ("shim.task.runc", "from ttrpc import aio", False),
        ("shim.task.runc", "import trio", False),
        ("daemon.app", "import trio\nimport ttrpc.aio", True),
        ("daemon.app", "from shim import bundle", False),
        ("daemon.restart", "from shim import policy", True),
        ("daemon.restart", "from shim.policy import decide", True),
        ("daemon.ctl.run", "from daemon import spec", True),
        ("daemon.ctl.run", "from ttrpc.aio import open_client", False),
        ("daemon.ctl.run", "import psutil", False),
        ("daemon.ctl.run", "def f():\n    import psutil", True),
        ("daemon.ctl.run", "def f():\n    import trio", False),
        ("shim.task.runc", "def f():\n    import psutil", False),
        ("ttrpc.frames", "import struct", True),
        ("ttrpc.frames", "import socket", False),
        ("ttrpc.loopdriver", "import socket", True),
        ("ttrpc.loopdriver", "import trio", False),
        ("ttrpc.aio", "import trio", True),
        ("ttrpc.aio", "import shim.core.loop", False),
        ("ttrpc.connection", "from . import aio", True),  # resolved, not skipped; the cycle is Python's to refuse
    ],
)
def test_the_rule_itself_tells_allowed_from_forbidden(importer: str, text: str, is_allowed: bool) -> None:
    assert (list(import_breaches(module(text, importer))) == []) is is_allowed


def test_relative_imports_are_resolved() -> None:
    assert list(module("from . import aio\nfrom .api import task", "ttrpc.service").imports()) == [
        ("ttrpc.api.task", 2),
        ("ttrpc.aio", 1),
    ]


@pytest.mark.parametrize("tree", ["ttrpc", "shim", "daemon"])
def test_imports_run_one_way(tree: str) -> None:
    assert [breach for module in modules(tree) for breach in import_breaches(module)] == []


def test_what_the_client_takes_from_the_daemon_is_pure() -> None:
    """Followed through every module of the daemon that ctl reaches."""
    known = {module.name: module for module in modules("daemon")}
    breaches = [
        f"{known[name].path}:{line} imports {target}, and ctl reaches it"
        for name in sorted(reached(targets(known), [name for name in known if is_within(name, "daemon.ctl")]))
        for target, line in known[name].imports()
        if (package(target) in NOT_IN_PURE or is_within(target, "ttrpc.aio")) and not is_lazy(known[name], target, line)
    ]

    assert breaches == []


def targets(known: dict[str, Module]) -> dict[str, set[str]]:
    """Of each module those among them that it imports when it runs, at the top or in a function."""

    def owner(name: str) -> str:
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name

    found = {name: {owner(target) for target, _ in module.imports()} for name, module in known.items()}
    return {name: those - {"", name} for name, those in found.items()}


def reached(graph: dict[str, set[str]], waiting: list[str]) -> set[str]:
    """What these reach, themselves included."""
    found: set[str] = set()
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting = [*waiting, *graph[current]]
    return found


def circles(known: list[Module]) -> list[list[str]]:
    """The modules that reach each other, and so can be read, tested and moved only together."""
    graph = targets({module.name: module for module in known})
    reach = {name: reached(graph, [name]) for name in graph}
    found = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return sorted(list(each) for each in found if len(each) > 1)


# The door and the house: launch.py starts with builtins alone, and the words spoken with the keeper; it opens to all
# the rest, of which some speak these words, too. A module of their own would be one more file to load in each `start`.
DOOR = [
    "shim.__main__",
    "shim.keeper.spawn",
    "shim.launch",
    "shim.recovery.rejoin",
    "shim.serving.serve",
    "shim.upgrade.relief",
]


def test_a_circle_is_found_wherever_it_closes() -> None:
    known = [
        module("from shim import b", "shim.a"),
        module("def f():\n    from shim.c import it", "shim.b"),
        module("import shim.a", "shim.c"),
        module("import shim.a\nTYPE_CHECKING = False\nif TYPE_CHECKING:\n    from shim import e", "shim.d"),
        module("from shim.d import f", "shim.e"),
    ]
    assert circles(known) == [["shim.a", "shim.b", "shim.c"]]


@pytest.mark.parametrize(
    ("trees", "known"), [(("ttrpc", "shim", "daemon"), [DOOR]), (("bench", "tests"), [])], ids=["product", "bench"]
)
def test_no_imports_in_a_circle(trees: tuple[str, ...], known: list[list[str]]) -> None:
    """Not even in functions, where Python does not mind: a shared piece belongs below both."""
    assert circles(modules(*trees)) == known


def loaded_by(statement: str) -> set[str]:
    """The top-level packages in memory after this statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    output = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True).stdout
    return set(output.split())


def test_a_serving_shim_loads_nothing_costly() -> None:
    """What the rules above cannot see: what our imports import."""
    loaded = loaded_by("import shim.__main__, shim.serving.service, ttrpc.loopdriver")

    assert loaded & (COSTLY - PULLED_IN_ANYWAY) == set()


def test_the_command_line_starts_without_trio_and_protobuf() -> None:
    loaded = loaded_by("import daemon.ctl.__main__")

    assert loaded & {"trio", "asyncio", "psutil", "sqlite3", "google.protobuf", "ttrpc.aio"} == set()


def test_the_keeper_preloads_nothing_that_is_not_a_shims() -> None:
    """Every module of ttrpc that is not left out by name is loaded, so one for the daemon must be: it brings trio."""
    assert loaded_by("from shim.keeper.code import preload; preload()") & (COSTLY - PULLED_IN_ANYWAY) == set()
    assert [name for name in our_modules() if any(is_within(name, parent) for parent in NOT_IN_SHIM)] == []
    assert [name for name in our_modules() if name.startswith("ttrpc.aio")] == []
