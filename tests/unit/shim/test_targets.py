"""What each form of a stdio URI means, and what is refused with which words."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.streams.targets import ATTACH, BINARY, CLIENT, DEFAULT_MAX_FILES, FILE, LOG, NOTHING, Target, parse, parse_all
from ttrpc.errors import StatusError
from ttrpc.status import Code


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("", Target(NOTHING)),
        ("/run/fifo/out", Target(CLIENT, "/run/fifo/out")),
        ("attach:", Target(ATTACH)),
        ("file:///var/log/x%20y", Target(FILE, "/var/log/x y")),
        ("log:///a/b", Target(LOG, "/a/b", format="json", max_size_bytes=0, max_files=DEFAULT_MAX_FILES)),
        (
            "log:///a?format=raw&max-size=4096&max-files=1&mode=drop",
            Target(LOG, "/a", format="raw", max_size_bytes=4096, max_files=1, mode="drop"),
        ),
        ("log:///100%25", Target(LOG, "/100%", format="json")),
        ("log:///100%", Target(LOG, "/100%", format="json")),
    ],
)
def test_a_uri_is_read(uri: str, target: Target) -> None:
    assert parse("stdout", uri) == target


@pytest.mark.parametrize(
    ("field", "uri", "words"),
    [
        ("stdout", "relative/path", "absolute path"),
        ("stdout", "npipe://x", "unknown scheme 'npipe'"),
        ("stdout", "attach:now", "nothing after"),
        ("stdout", "log://host/x", "log:///absolute/path"),
        ("stdout", "log:///", "name a file"),
        ("stdout", "binary://logger", "binary:///absolute/path"),
        ("stdin", "binary:///logger", "input comes from"),
        ("stdout", "log:///x?fromat=json", "unknown option 'fromat=json'; known: format, max-size"),
        ("stdout", "log:///x?format=xml", "json or raw"),
        ("stdout", "log:///x?mode=panic", "block or drop"),
        ("stdout", "log:///x?max-size=10m", "whole number"),
        ("stdout", "log:///x?max-size=1", "at least 4096"),
        ("stdout", "log:///x?max-files=0", "from 1"),
        ("stdout", "/x\0y", "zero byte"),
        ("stdin", "log:///x", "input comes from"),
        ("stdin", "file:///x", "input comes from"),
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, uri: str, words: str) -> None:
    with pytest.raises(StatusError, match=words) as refusal:
        parse(field, uri)
    assert refusal.value.code == Code.INVALID_ARGUMENT
    assert refusal.value.message.startswith(f"{field} ")


@pytest.mark.parametrize(
    ("query", "arguments"),
    [
        ("", ()),
        ("?", ()),
        ("?k=v", ("k", "v")),
        ("?b=2&a=1&b=3", ("b", "2", "a", "1")),
        ("?flag&x=", ("flag", "", "x", "")),
        ("?a+b=c%20d%3D%26", ("a b", "c d=&")),
    ],
)
def test_a_log_programs_arguments_are_read_as_go_reads_a_query(query: str, arguments: tuple[str, ...]) -> None:
    """In their order, which Go's shim leaves to chance."""
    assert parse("stdout", f"binary:///l%6Fg{query}") == Target(BINARY, "/log", arguments=arguments)
    assert parse("stdout", f"binary-v2:///log{query}").says_ready


def test_a_log_takes_both_streams() -> None:
    for stderr in ("", "log:///x"):
        _source, out, err = parse_all("", "log:///x", stderr, terminal=False)
        assert out == err
    for stdout, stderr in (
        ("log:///x", "/fifo"),
        ("log:///x", "log:///y"),
        ("", "log:///x"),
        ("/fifo", "file:///x"),
        ("binary:///x", "binary:///y"),
        ("", "binary:///x"),
    ):
        with pytest.raises(StatusError, match="both streams"):
            parse_all("", stdout, stderr, terminal=False)


def test_a_terminal_has_no_stderr() -> None:
    assert parse_all("attach:", "attach:", "ftp:nonsense", terminal=True)[2] == Target(NOTHING)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(uri: str) -> None:
    """Never another exception than the refusal."""
    with contextlib.suppress(StatusError):
        assert isinstance(parse("stdout", uri), Target)
