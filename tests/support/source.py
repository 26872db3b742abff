"""The source as data: modules, their imports at run time, their functions. What the house rules are checked on."""

import ast
import fnmatch
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PACKAGES = ("ttrpc", "shim", "daemon")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One Python file."""

    name: str  # dotted
    path: str  # from the root of the repository
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def line_count(self) -> int:
        return self.text.count("\n")

    def imports(self) -> Iterator[tuple[str, int]]:
        """Every module this one imports when it runs, anywhere in it, and the line. `from a import b` is `a.b`."""
        package = self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]
        for node in at_run_time(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*parents, base] if base else parents)
                yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)

    def functions(self) -> Iterator[tuple[str, FunctionNode]]:
        """Every function and method with its qualified name."""
        yield from functions_in(self.tree, "")


def module(text: str, name: str = "shim.example") -> Module:
    """A module made up for a test."""
    return Module(name, name.replace(".", "/") + ".py", text)


def modules(*folders: str) -> list[Module]:
    """Every Python file below these folders of the repository."""
    found = []
    for folder in folders:
        for parent, inner, names in os.walk(os.path.join(ROOT, folder)):
            inner[:] = sorted(name for name in inner if name != "__pycache__")
            for name in sorted(names):
                if name.endswith(".py"):
                    found.append(load(os.path.relpath(os.path.join(parent, name), ROOT)))
    return found


@functools.cache
def load(path: str) -> Module:
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        text = file.read()
    name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    return Module(name, path, text)


def at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and is_type_checking(node.test):
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def functions_in(tree: ast.AST, prefix: str) -> Iterator[tuple[str, FunctionNode]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, FunctionNode):
            yield prefix + node.name, node
            yield from functions_in(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions_in(node, f"{prefix}{node.name}.")
        else:
            yield from functions_in(node, prefix)


def text_files() -> Iterator[tuple[str, str]]:
    """Path and content of every file of the repository that is text and not ignored by git or made by a tool."""
    for parent, inner, names in os.walk(ROOT):
        inner[:] = [name for name in inner if not is_ignored(name) and name != ".git"]
        for name in names:
            path = os.path.join(parent, name)
            if is_ignored(name) or name == ".git" or name.endswith(".binpb") or not os.path.isfile(path):
                continue
            with open(path, encoding="utf-8", errors="replace") as file:
                yield os.path.relpath(path, ROOT), file.read()


@functools.cache
def ignore_patterns() -> tuple[str, ...]:
    with open(os.path.join(ROOT, ".gitignore"), encoding="utf-8") as file:
        return tuple(line.strip().rstrip("/") for line in file if line.strip() and not line.startswith("#"))


def is_ignored(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern.rpartition("/")[2]) for pattern in ignore_patterns())
