"""Wall time as logs write it: RFC 3339 in UTC with nanoseconds. Each second is worked out once."""

import time

_DAYS_BEFORE_MONTH = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)


class Stamper:
    """Turns nanoseconds into text, remembering the last second: a busy log asks for the same one again and again."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = b""

    def stamp(self, at_ns: int) -> bytes:
        """``2026-11-24T05:30:28.123456789Z``: always nine digits, so every stamp has the same length."""
        second, nanos = divmod(at_ns, 1_000_000_000)
        if second != self._second:
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode("ascii")
            self._second = second
        return b"%s.%09dZ" % (self._text, nanos)


class StampReader:
    """Turns the text back into nanoseconds, remembering the last second's text."""

    __slots__ = ("_second_ns", "_text")

    def __init__(self) -> None:
        self._text = b""
        self._second_ns = 0

    def nanoseconds(self, stamp: bytes) -> "int | None":
        """Read a UTC stamp with up to nine digits of fraction; None when it is no such thing."""
        if len(stamp) < 20 or stamp[-1:] != b"Z":
            return None
        text = stamp[:19]
        if text != self._text:
            second = _second(text)
            if second is None:
                return None
            self._text, self._second_ns = text, second * 1_000_000_000
        fraction = stamp[20:-1]
        if not fraction:
            return self._second_ns if stamp[19:] == b"Z" else None
        if stamp[19:20] != b"." or len(fraction) > 9 or not fraction.isdigit():
            return None
        return self._second_ns + int(fraction.ljust(9, b"0"))


def _second(text: bytes) -> "int | None":
    """Seconds since 1970 of ``YYYY-MM-DDTHH:MM:SS`` in the proleptic Gregorian calendar."""
    if (text[4:5], text[7:8], text[10:11], text[13:14], text[16:17]) != (b"-", b"-", b"T", b":", b":"):
        return None
    parts = (text[:4], text[5:7], text[8:10], text[11:13], text[14:16], text[17:19])
    if not all(part.isdigit() for part in parts):
        return None
    year, month, day, hour, minute, second = map(int, parts)
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60 and year >= 1970):
        return None
    leap_year = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400 - 719162
    days += _DAYS_BEFORE_MONTH[month - 1] + day - 1 + (1 if leap_year and month > 2 else 0)
    return ((days * 24 + hour) * 60 + minute) * 60 + second
