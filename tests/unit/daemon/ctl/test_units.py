"""Spans, moments and sizes, as people write and read them."""

import pytest

from daemon.ctl import units

NOW_NS = 1_795_498_228_000_000_000  # 2026-11-24T05:30:28Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("1.5", 1.5), ("90s", 90.0), ("10m", 600.0), ("1h30m", 5400.0), ("2d", 172800.0), ("250ms", 0.25)],
)
def test_a_span_is_read(text: str, seconds: float) -> None:
    assert seconds == units.parse_span(text)


@pytest.mark.parametrize("text", ["", "m", "10 m", "10x", "-5", "1h30"])
def test_what_is_no_span_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write 90s"):
        units.parse_span(text)


@pytest.mark.parametrize(
    ("text", "at_ns"),
    [
        ("10m", NOW_NS - 600 * units.NS),
        ("1795498228", NOW_NS),
        ("1795498228.5", NOW_NS + 500_000_000),
        ("2026-11-24T05:30:28Z", NOW_NS),
        ("2026-11-24T05:30:28.123456789Z", NOW_NS + 123_456_789),
        ("2026-11-24T06:30:28+01:00", NOW_NS),
        ("2026-11-24 03:30:28-0200", NOW_NS),
    ],
)
def test_a_moment_is_read_to_the_nanosecond(text: str, at_ns: int) -> None:
    """A bare number is a moment here: only with a unit is it a span back from now."""
    assert at_ns == units.parse_moment(text, NOW_NS)


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01T00:00:00Z", "24.11.2026"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"moment|month"):
        units.parse_moment(text, NOW_NS)


def test_time_is_written_as_it_is_read() -> None:
    text = units.rfc3339(NOW_NS + 7)

    assert text == "2026-11-24T05:30:28.000000007Z"
    assert units.parse_moment(text, 0) == NOW_NS + 7
    assert units.rfc3339(None) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "less than a second"),
        (1, "1 second"),
        (99, "99 seconds"),
        (100, "1 minute"),
        (7200, "2 hours"),
        (3 * 86400, "3 days"),
        (30 * 86400, "4 weeks"),
        (4 * 31557600, "4 years"),
        (-5, "less than a second"),  # clocks that differ are no news
    ],
)
def test_a_span_in_words(seconds: float, words: str) -> None:
    assert words == units.span_words(seconds)


def test_cpu_time_and_sizes() -> None:
    assert units.clock_words(3661) == "01:01:01"
    assert units.clock_words(90061) == "1-01:01:01"
    assert [units.binary_bytes(n) for n in (0, 1023, 1536, 3 << 20, 5 << 40, 5000 << 40)] == [
        "0B",
        "1023B",
        "1.5KiB",
        "3MiB",
        "5TiB",
        "5000TiB",
    ]
