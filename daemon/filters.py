r"""containerd's filter language: ``namespace==moby,topic~=|^/tasks/|``. Pure.

A filter is a list of selectors joined by ',' (all must match); of several filters any one may match. A selector is a
field path, alone (the field is there) or followed by an operator and a value:

    ==  equal      !=  not equal (true of a missing field)      ~=  the regular expression matches somewhere

Values are bare up to the next ',' or quoted with "…" or '…' (backslash escapes); a regular expression may also stand
between |…| or /…/, where only that quote itself needs a backslash. Path parts are joined by '.', quoted where they
hold other characters: ``labels."my.label"``.
"""

import re
from collections.abc import Callable, Sequence

from daemon.errors import invalid_argument

# Looks a field path up in whatever is filtered; None when the field is not there.
Lookup = Callable[[Sequence[str]], str | None]
Matcher = Callable[[Lookup], bool]

_BARE_FIELD = re.compile(r"[A-Za-z0-9_/-]+")
_OPERATOR = re.compile(r"==|!=|~=")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class _Scanner:
    """A position in one filter's text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, reason: str) -> Exception:
        return invalid_argument(f"filter {self.text!r}, at {self.at}: {reason}")

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, pattern: "re.Pattern[str]") -> str | None:
        found = pattern.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        return found.group()

    def quoted(self, *, regular_expression: bool = False) -> str:
        """Read a quoted part; the scanner stands on its opening quote, and after it behind the closing one."""
        quote = self.peek()
        start = self.at
        self.at += 1
        read: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == quote:
                self.at += 1
                return "".join(read)
            if char == "\\" and self.at + 1 < len(self.text):
                follower = self.text[self.at + 1]
                self.at += 2
                # In an expression the backslash is the expression's own, except before the quote.
                if regular_expression and follower != quote:
                    read.append(char + follower)
                else:
                    read.append(follower if regular_expression else _ESCAPES.get(follower, follower))
                continue
            read.append(char)
            self.at += 1
        self.at = start
        raise self.fail(f"the quote {quote} is never closed")

    def bare_value(self) -> str:
        end = self.text.find(",", self.at)
        end = len(self.text) if end < 0 else end
        value = self.text[self.at : end].strip()
        self.at = end
        return value


def parse(text: str) -> Matcher:
    """One filter as a function of a lookup. An empty filter matches everything.

    Raises: InvalidArgument naming the place in the text.
    """
    scanner = _Scanner(text.strip())
    if not scanner.text:
        return lambda _lookup: True
    selectors = [_selector(scanner)]
    while scanner.at < len(scanner.text):
        if scanner.peek() != ",":
            raise scanner.fail("expected ',' before the next selector")
        scanner.at += 1
        selectors.append(_selector(scanner))
    return lambda lookup: all(selector(lookup) for selector in selectors)


def parse_all(texts: Sequence[str]) -> Matcher:
    """Several filters, any of which may match; none at all matches everything."""
    if not texts:
        return lambda _lookup: True
    matchers = [parse(text) for text in texts]
    return lambda lookup: any(matcher(lookup) for matcher in matchers)


def _selector(scanner: _Scanner) -> Matcher:
    path = _field_path(scanner)
    operator = scanner.take(_OPERATOR)
    if operator is None:
        return lambda lookup: lookup(path) is not None
    quotes = "\"'|/" if operator == "~=" else "\"'"
    if scanner.peek() and scanner.peek() in quotes:
        value = scanner.quoted(regular_expression=operator == "~=")
    else:
        value = scanner.bare_value()
    if operator == "==":
        return lambda lookup: lookup(path) == value
    if operator == "!=":
        return lambda lookup: lookup(path) != value
    try:
        expression = re.compile(value)
    except re.error as error:
        raise scanner.fail(f"the regular expression {value!r} is not valid: {error}") from None
    return lambda lookup: (found := lookup(path)) is not None and expression.search(found) is not None


def _field_path(scanner: _Scanner) -> tuple[str, ...]:
    parts = []
    while True:
        if scanner.peek() and scanner.peek() in "\"'":
            parts.append(scanner.quoted())
        else:
            part = scanner.take(_BARE_FIELD)
            if part is None:
                raise scanner.fail("expected the name of a field")
            parts.append(part)
        if scanner.peek() != ".":
            return tuple(parts)
        scanner.at += 1


def labels_lookup(path: Sequence[str], labels: "dict[str, str]") -> str | None:
    """A label by the rest of a path: ``labels.a.b`` and ``labels."a.b"`` are the same label."""
    return labels.get(".".join(path))
