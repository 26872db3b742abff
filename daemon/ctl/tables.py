"""Tables for people: columns that fit the terminal, colour only where it is wanted. Pure but for `print_table`."""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

GAP = "   "
ELLIPSIS = "…"
COLOURS = {"green": "\x1b[32m", "red": "\x1b[31m", "yellow": "\x1b[33m", "grey": "\x1b[90m"}
RESET = "\x1b[0m"


class Column:
    """A heading and how its cells behave: right-aligned numbers, how narrow it may become (0: never cut), and which end
    of a cell that is cut is kept."""

    __slots__ = ("keeps_end", "least", "right", "title")

    def __init__(self, title: str, *, right: bool = False, least: int = 0, keeps_end: bool = False) -> None:
        self.title = title
        self.right = right
        self.least = least
        self.keeps_end = keeps_end


class Cell(str):
    """A table cell with a colour. The colour takes no width."""

    __slots__ = ("colour",)
    colour: str

    def __new__(cls, text: str, colour: str = "") -> "Cell":
        made = super().__new__(cls, text)
        made.colour = colour
        return made


def plain(text: str) -> str:
    """Text without control characters: what a container is called or runs must not steer our reader's terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else " " if char in "\t\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def layout(
    columns: "Sequence[Column]", rows: "Sequence[Sequence[str]]", width: int | None, *, colour: bool = False
) -> list[str]:
    """The lines of a table. With a width, columns that may be cut are narrowed, the widest first, until a line fits."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max([len(column.title), *(len(row[at]) for row in cells)]) for at, column in enumerate(columns)]
    if width is not None:
        _narrow(columns, widths, width - len(GAP) * (len(columns) - 1))
    lines = [_line([column.title for column in columns], columns, widths)]
    for number, row in enumerate(cells):
        shades = [getattr(cell, "colour", "") if colour else "" for cell in rows[number]]
        lines.append(_line(row, columns, widths, shades))
    return lines


def _narrow(columns: "Sequence[Column]", widths: list[int], room: int) -> None:
    """Take the excess from the widest column that may still give, one character at a time."""
    excess = sum(widths) - room
    while excess > 0:
        giving = [at for at, column in enumerate(columns) if column.least and widths[at] > column.least]
        if not giving:
            return
        widest = max(giving, key=lambda at: widths[at])
        widths[widest] -= 1
        excess -= 1


def _line(row: "Sequence[str]", columns: "Sequence[Column]", widths: list[int], shades: "Sequence[str]" = ()) -> str:
    parts = []
    for at, text in enumerate(row):
        if len(text) > widths[at]:
            kept = widths[at] - 1
            text = ELLIPSIS + text[len(text) - kept :] if columns[at].keeps_end else text[:kept] + ELLIPSIS
        padded = text.rjust(widths[at]) if columns[at].right else text.ljust(widths[at])
        if shades and shades[at]:
            padded = COLOURS[shades[at]] + text + RESET + padded[len(text) :]
        parts.append(padded)
    return GAP.join(parts).rstrip()


def is_tty(stream: "TextIO") -> bool:
    """Whether a stream goes to a terminal; a closed or replaced one does not."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def wants_colour(stream: "TextIO") -> bool:
    """Whether to colour what goes to this stream. Source: no-color.org; TERM=dumb."""
    return is_tty(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width(stream: "TextIO") -> int | None:
    """Columns of the terminal behind a stream, None when there is none: then nothing is cut."""
    if not is_tty(stream):
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def print_table(
    columns: "Sequence[Column]", rows: "Sequence[Sequence[str]]", *, cut: bool = True, stream: "TextIO | None" = None
) -> None:
    """Write a table to stdout; into a pipe, or with ``cut=False``, every cell in full."""
    out = stream or sys.stdout
    width = terminal_width(out) if cut else None
    print("\n".join(layout(columns, rows, width, colour=wants_colour(out))), file=out)
