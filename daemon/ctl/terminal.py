"""Our own terminal: raw while a container has it, its size, and the keys that let go of it."""

import os
import termios

from daemon.ctl.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class RawTerminal:
    """A terminal switched to raw, so that every key goes to the container. Owns its former settings.

    As a context manager it restores them on every way out. Against SIGKILL nothing helps: type `reset`.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    def __enter__(self) -> "RawTerminal":
        self._saved = termios.tcgetattr(self._fd)
        raw = termios.tcgetattr(self._fd)
        # Source: termios(3), cfmakeraw; output processing stays on at the container's own terminal only.
        raw[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        raw[1] &= ~termios.OPOST
        raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, raw)
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Put the settings back. A terminal that has hung up has none to put back."""
        saved, self._saved = self._saved, None
        if saved is not None:
            try:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, saved)
            except termios.error:
                pass


def window_size() -> tuple[int, int] | None:
    """(columns, rows) of our terminal, by whichever of our three streams is one."""
    for fd in (1, 0, 2):
        try:
            size = os.get_terminal_size(fd)
        except OSError:
            continue
        if size.columns and size.lines:
            return size.columns, size.lines
    return None


def parse_detach_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` or ``a,ctrl-]`` as the bytes a terminal sends; empty text is no such keys.

    Raises: UsageError.
    """
    keys = bytearray()
    for word in filter(None, text.split(",")):
        if len(word) == 1 and word.isascii():
            keys += word.encode()
            continue
        head, _, key = word.lower().partition("-")
        if head != "ctrl" or len(key) != 1 or not (key.isalpha() or key in "@[\\]^_"):
            raise UsageError(
                f"detach key {word!r} is not known: write single characters or ctrl-a … ctrl-z, joined by ','"
            )
        keys.append(ord(key.upper()) - 0x40)
    return bytes(keys)


class DetachKeys:
    """Looks for a sequence of keys in what is typed. What may be its beginning is held back until that is decided."""

    __slots__ = ("_at", "_keys")

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._at = 0

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """(what to pass on, whether the sequence was completed: then nothing after it is passed on)."""
        if not self._keys:
            return typed, False
        out = bytearray()
        for byte in typed:
            if byte == self._keys[self._at]:
                self._at += 1
                if self._at == len(self._keys):
                    self._at = 0
                    return bytes(out), True
                continue
            out += self._keys[: self._at]
            self._at = 1 if byte == self._keys[0] else 0
            if not self._at:
                out.append(byte)
        return bytes(out), False
