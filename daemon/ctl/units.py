"""Sizes, spans and moments, as people write and read them. Pure: the present is always a parameter."""

import re

NS = 1_000_000_000

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SPAN_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_RFC3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})(?:[Tt ](\d{2}):(\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?\s*([Zz]|[+-]\d{2}:?\d{2})?)?"
)


def parse_span(text: str) -> float:
    """Seconds of a span such as 10m, 1h30m or 1.5s; a bare number counts seconds.

    Raises: ValueError.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _SPAN.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no span of time; write 90s, 10m, 1h30m or 2d")
    return sum(float(number) * _SPAN_S[unit] for number, unit in parts)


def parse_moment(text: str, now_ns: int) -> int:
    """Wall time in nanoseconds of RFC 3339 text, of Unix seconds (1700000000.5), or of a span back from now (10m).

    RFC 3339 text without an offset is local time; a date alone is its midnight.
    Raises: ValueError.
    """
    found = _RFC3339.fullmatch(text)
    if found:
        return _calendar_ns(found)
    if re.fullmatch(r"\d+(\.\d{1,9})?", text):
        seconds, _, fraction = text.partition(".")
        return int(seconds) * NS + int(fraction.ljust(9, "0") or 0)
    try:
        return now_ns - int(parse_span(text) * NS)
    except ValueError:
        raise ValueError(
            f"{text!r} is no moment; write 10m (ago), 2026-11-24T05:30:28Z or Unix seconds such as 1795498228"
        ) from None


def _calendar_ns(found: "re.Match[str]") -> int:
    import datetime

    year, month, day, hour, minute, second, fraction, offset = found.groups()
    zone: datetime.tzinfo | None = None
    if offset:
        sign = -1 if offset[0] == "-" else 1
        digits = offset[1:].replace(":", "")
        away = 0 if offset in "Zz" else sign * (int(digits[:2]) * 3600 + int(digits[2:]) * 60)
        zone = datetime.timezone(datetime.timedelta(seconds=away))
    moment = datetime.datetime(
        int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=zone
    )
    return int(moment.timestamp()) * NS + int((fraction or "").ljust(9, "0"))


def rfc3339(at_ns: int | None) -> str:
    """Wall time as RFC 3339 in UTC with nanoseconds; empty for never."""
    if at_ns is None:
        return ""
    import time

    seconds, nanos = divmod(at_ns, NS)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanos:09d}Z"


def span_words(seconds: float) -> str:
    """A span in the one unit that tells it best: `7 seconds`, `3 minutes`, `2 days`."""
    whole = max(0, int(seconds))
    for size, unit, until in (
        (1, "second", 100),
        (60, "minute", 100),
        (3600, "hour", 48),
        (86400, "day", 21),
        (604800, "week", 104),
    ):
        count = whole // size
        if count < until:
            return (
                "less than a second"
                if unit == "second" and count == 0
                else f"{count} {unit}{'' if count == 1 else 's'}"
            )
    return f"{whole // 31557600} years"


def clock_words(seconds: float) -> str:
    """CPU time as `ps` prints it: 00:00:07, and days when there are any."""
    whole = int(seconds)
    days, rest = divmod(whole, 86400)
    text = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{text}" if days else text


def binary_bytes(count: float) -> str:
    """A size in powers of 1024: 512B, 1.5MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f}{unit}" if unit == "B" else f"{size:.4g}{unit}"
        size /= 1024
    raise AssertionError("the last unit always returns")
