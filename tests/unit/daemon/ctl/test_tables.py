"""Tables fit where they are shown."""

import io

import pytest

from daemon.ctl import tables
from daemon.ctl.tables import Cell, Column

COLUMNS = (Column("ID", least=4), Column("N", right=True), Column("COMMAND", least=8))


def test_columns_are_as_wide_as_their_content() -> None:
    assert tables.layout(COLUMNS, [["a", "1", "sleep"], ["longer", "22", "x"]], None) == [
        "ID        N   COMMAND",
        "a         1   sleep",
        "longer   22   x",
    ]


def test_the_widest_column_gives_first_and_shows_it() -> None:
    lines = tables.layout(COLUMNS, [["an-id", "1", "a very long command line indeed"]], 30)

    assert lines[1] == "an-id   1   a very long comma…"
    assert max(map(len, lines)) == 30


def test_a_terminal_too_narrow_for_the_least_is_not_obeyed() -> None:
    lines = tables.layout(COLUMNS, [["identifier", "1", "command"]], 5)

    assert lines[1] == "ide…   1   command"


def test_colour_takes_no_width() -> None:
    plain = tables.layout(COLUMNS, [["a", "1", "x"]], None)
    coloured = tables.layout(COLUMNS, [[Cell("a", "green"), "1", "x"]], None, colour=True)

    assert coloured[1] == plain[1].replace("a", "\x1b[32ma\x1b[0m", 1)
    assert tables.layout(COLUMNS, [[Cell("a", "green"), "1", "x"]], None) == plain


def test_what_a_container_is_called_cannot_steer_the_terminal() -> None:
    lines = tables.layout(COLUMNS, [["a\x1b[2J", "1", "b\nc\td"]], None)

    assert lines[1] == "a�[2J   1   b c d"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_colour_is_for_terminals_that_want_it(
    environment: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert tables.wants_colour(Terminal()) is wanted
    assert not tables.wants_colour(io.StringIO())


def test_into_a_pipe_nothing_is_cut() -> None:
    out = io.StringIO()

    tables.print_table(COLUMNS, [["i" * 300, "1", "c" * 300]], stream=out)

    assert "i" * 300 in out.getvalue()
    assert "c" * 300 in out.getvalue()


def test_of_a_path_the_end_is_kept() -> None:
    columns = (Column("PATH", least=4, keeps_end=True), Column("N"))

    assert tables.layout(columns, [["/run/shimd/s/one", "1"]], 14)[1] == "…imd/s/one   1"
