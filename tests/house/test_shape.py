"""The shape of the source: sizes, names, docstrings, what tests may do. Each rule is shown on a made-up text."""

import ast
import os
import re
import tomllib
from collections.abc import Iterator

import pytest

import daemon.version
import shim.version
from tests.support.source import (
    PACKAGES,
    ROOT,
    FunctionNode,
    Module,
    is_ignored,
    module,
    modules,
    text_files,
)

LONGEST_MODULE = 400  # lines: one sitting
LONGEST_FUNCTION = 60  # lines: one screen

# Exceptions, each with its reason.
LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {
    "daemon.spec.SpecOptions.__init__": "one line for each option and nothing else",
}

TOP_LEVEL = {
    *("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", ".gitignore"),
    *("ttrpc", "shim", "daemon", "tests", "bench", ".ci"),
}

# Paths of somebody's own machine, and hosts that are configuration, not source. Put together here, so as not to match.
MACHINE_PATHS = [f"/{folder}/" for folder in ("work", "opt/shimd")]
REGISTRY_HOSTS = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("deb", "debian", "org"))]


# --- sizes ------------------------------------------------------------------------------------------------------------


def length(function: FunctionNode) -> int:
    """Lines of a function without its decorators: a table of parameters is data."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def long_functions(module: Module) -> Iterator[str]:
    for name, function in module.functions():
        if length(function) > LONGEST_FUNCTION and f"{module.name}.{name}" not in LONG_FUNCTIONS:
            yield f"{module.path}:{function.lineno} {name} has {length(function)} lines"


def test_a_module_is_read_in_one_sitting() -> None:
    too_long = [
        f"{module.path} has {module.line_count} lines"
        for module in modules(*PACKAGES, "bench", "tests/support")
        if module.line_count > LONGEST_MODULE and module.name not in LONG_MODULES
    ]

    assert too_long == []


def test_a_function_fits_on_a_screen() -> None:
    assert [words for module in modules(*PACKAGES, "bench", "tests") for words in long_functions(module)] == []


def test_a_long_function_is_told() -> None:
    body = "def short():\n    pass\ndef long():\n" + "    pass\n" * LONGEST_FUNCTION

    assert list(long_functions(module(body))) == ["shim/example.py:3 long has 61 lines"]


# --- packages and docstrings ------------------------------------------------------------------------------------------


def is_only_docstring(module: Module) -> bool:
    return len(module.tree.body) == 1 and ast.get_docstring(module.tree) is not None


def test_every_init_is_empty_but_for_its_docstring() -> None:
    """A package that pulls in its world costs each shim megabytes."""
    inits = [module for module in modules(*PACKAGES) if module.path.endswith("__init__.py")]

    assert inits != []
    assert [module.path for module in inits if not is_only_docstring(module)] == []


def says_nothing(name: str, docstring: str | None) -> bool:
    """Whether a docstring is missing or only spells its own name."""
    words = set(re.findall(r"[a-z]+", (docstring or "").lower())) - {"the", "a", "an", "of", "to", "this", "is"}
    return not words - set(re.findall(r"[a-z]+", name.lower()))


def is_one_liner(node: ast.AST) -> bool:
    """A function of one statement, which its name and types explain."""
    return isinstance(node, FunctionNode) and len(node.body) == 1


def undocumented(module: Module) -> Iterator[str]:
    """The module, its public classes, and its public functions of more than one statement, where nothing is said."""
    if says_nothing("", ast.get_docstring(module.tree)):
        yield f"{module.path} has no docstring"
    for node in module.tree.body:
        if isinstance(node, FunctionNode | ast.ClassDef) and not node.name.startswith("_") and not is_one_liner(node):
            name = re.sub(r"([a-z])([A-Z])", r"\1_\2", node.name)
            if says_nothing(name, ast.get_docstring(node)):
                yield f"{module.path}:{node.lineno} {node.name}"


def test_every_public_name_says_what_it_is_for() -> None:
    assert [words for module in modules(*PACKAGES, "bench") for words in undocumented(module)] == []


@pytest.mark.parametrize(
    ("text", "is_told"),
    [
        ("def open_bundle():\n    '''Open the bundle.'''\n    return 1", True),
        ("def open_bundle():\n    x = 1\n    return x", True),
        ("def open_bundle():\n    return 1", False),
        ("def open_bundle():\n    '''Read its spec; the folder must exist.'''", False),
        ("def _inner():\n    pass", False),
        ("class ShimState:\n    '''State of the shim.'''", True),
    ],
)
def test_a_docstring_that_spells_its_name_says_nothing(text: str, is_told: bool) -> None:
    assert (list(undocumented(module(f"'''A module for example.'''\n{text}"))) != []) is is_told


# --- tests ------------------------------------------------------------------------------------------------------------


def is_code_with_asserts(node: ast.AST) -> bool:
    """A program in a string, run in a process of its own: its assertions count."""
    if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        return False
    return re.search(r"^\s*assert ", node.value, re.MULTILINE) is not None


ASSERTING = ("raises", "warns", "fail", "RaisesGroup")


def asserts_something(function: FunctionNode) -> bool:
    """Whether a test can fail by what it sees: an assert, pytest.raises, a helper that says it checks.

    `wait_until` and its like raise AssertionError when their time is up.
    """
    for node in ast.walk(function):
        if isinstance(node, ast.Assert) or is_code_with_asserts(node):
            return True
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("raises", "warns", "fail", "RaisesGroup") or called.startswith(
                ("check", "assert", "expect", "wait_until")
            ):
                return True
            if any((keyword.arg or "").startswith("expect") for keyword in node.keywords):
                return True
    return False


def test_no_test_without_an_assertion() -> None:
    idle = [
        f"{module.path}:{function.lineno} {name}"
        for module in modules("tests")
        for name, function in module.functions()
        if function.name.startswith("test_") and not asserts_something(function)
    ]

    assert idle == []


@pytest.mark.parametrize(
    ("body", "is_fine"),
    [
        ("do()", False),
        ("do()\n    assert done", True),
        ("with pytest.raises(ValueError):\n        do()", True),
        ("play.expects(Spawn)", True),
        ("pair.send(1, expect=2)", True),
        ("run('x = 1\\nassert x')", True),
        ("print('nothing to assert here')", False),
    ],
)
def test_the_assertion_rule_itself(body: str, is_fine: bool) -> None:
    _, function = next(module(f"def test_it():\n    {body}\n").functions())

    assert asserts_something(function) is is_fine


def sleeps(module: Module) -> Iterator[str]:
    """Calls of time.sleep, and of trio.sleep where no fake clock makes it free."""
    has_fake_clock = "autojump_clock" in module.text or "MockClock" in module.text
    for node in ast.walk(module.tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "sleep"):
            continue
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        is_zero = bool(node.args) and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
        if owner == "time" or (owner == "trio" and not is_zero and not has_fake_clock):
            yield f"{module.path}:{node.lineno}"


def test_no_test_sleeps() -> None:
    """They wait for a condition: tests.support.waiting."""
    assert [place for module in modules("tests") for place in sleeps(module)] == []


def test_the_sleep_rule_itself() -> None:
    assert list(sleeps(module("import time\ntime.sleep(1)"))) == ["shim/example.py:2"]
    assert list(sleeps(module("trio.sleep(0)\ntrio.sleep(1)"))) == ["shim/example.py:2"]
    assert list(sleeps(module("def test(autojump_clock):\n    trio.sleep(1)"))) == []


# --- the repository ---------------------------------------------------------------------------------------------------


def test_the_top_level_holds_what_the_design_lists_and_nothing_else() -> None:
    there = {name for name in os.listdir(ROOT) if name != ".git" and not is_ignored(name)}

    assert sorted(there) == sorted(TOP_LEVEL)


def test_no_machine_path_or_registry_host_is_in_the_tree() -> None:
    words = [*MACHINE_PATHS, *REGISTRY_HOSTS]

    assert [(path, word) for path, text in text_files() for word in words if word in text] == []


def project_version() -> str:
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        version: str = tomllib.load(file)["project"]["version"]
    return version


def test_daemon_and_shim_report_the_version_of_the_project() -> None:
    assert {daemon.version.VERSION, shim.version.VERSION} == {project_version()}


def test_the_changelog_begins_with_the_version_of_the_project() -> None:
    with open(os.path.join(ROOT, "CHANGELOG.md"), encoding="utf-8") as file:
        newest = re.search(r"^## (\S+)", file.read(), flags=re.MULTILINE)

    assert newest is not None
    assert newest.group(1) == project_version()
