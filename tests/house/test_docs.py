"""The documents: there, and true where a machine can tell."""

import glob
import os
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.source import ROOT, load, text_files

PAGES = ("README.md", "ttrpc/PROTOCOL.md", "shim/SHIM.md", "daemon/DESIGN.md", "tests/README.md", "bench/README.md")
HOLDS_PROMISES = ("ttrpc/PROTOCOL.md", "shim/SHIM.md", "daemon/DESIGN.md")


def references(text: str) -> Iterator[tuple[str, str]]:
    """Every file below tests/ or bench/ a page names, and the test in it (after ::) or an empty word."""
    yield from re.findall(r"\b((?:tests|bench)/[\w./*-]*[\w*])(?:::(\w+))?", text)


def broken_references(page: str, text: str) -> Iterator[str]:
    for path, name in references(text):
        if not glob.glob(os.path.join(ROOT, path)):
            yield f"{page} names {path}, which is not there"
        elif name and name not in {function.name for _, function in load(path).functions()}:
            yield f"{page} names {path}::{name}, which is not there"


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_there(page: str) -> None:
    assert os.path.getsize(os.path.join(ROOT, page)) > 0


def test_pages_name_tests_that_exist() -> None:
    pages = [(path, text) for path, text in text_files() if path.endswith(".md")]

    assert [words for path, text in pages for words in broken_references(path, text)] == []


def test_a_broken_reference_is_told() -> None:
    here = "tests/house/test_docs.py"
    text = f"held by `{here}::test_a_broken_reference_is_told`, `{here}::nope`, `tests/no.py`."

    assert list(broken_references("X.md", text)) == [
        "X.md names tests/house/test_docs.py::nope, which is not there",
        "X.md names tests/no.py, which is not there",
    ]


@pytest.mark.parametrize("page", HOLDS_PROMISES)
def test_a_page_of_promises_names_the_tests_that_hold_them(page: str) -> None:
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        assert list(references(file.read())) != []


def test_the_readme_gives_the_two_commands() -> None:
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        text = file.read()

    assert "make demo" in text
    assert "make test" in text


def test_every_make_target_is_explained() -> None:
    """`make` alone prints a line for each target that is for people."""
    with open(os.path.join(ROOT, "Makefile"), encoding="utf-8") as file:
        text = file.read()
    targets = set(re.findall(r"^([a-z-]+):", text, flags=re.MULTILINE)) - {"root"}
    make = shutil.which("make")
    assert make is not None

    shown = subprocess.run(
        [make, "-C", ROOT], check=True, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )

    assert {line.split()[1] for line in shown.stdout.splitlines() if line.startswith("  make ")} == targets
