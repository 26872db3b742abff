"""What `start` asks the keeper, read; what it is answered, written. The other half, of builtins only, is launch.py."""

import os

from shim.launch import MAGIC, START

# Argument lists end at this many words in any sane call; the environment at the kernel's own limits (execve(2)).
WORDS_MAX = 64


class BadRequest(Exception):
    """A message that is no request."""


class Request:
    """Everything a shim is started with."""

    __slots__ = ("arguments", "cwd", "environment", "stdin")

    def __init__(self, cwd: str, arguments: "list[str]", environment: "dict[str, str]", stdin: bytes) -> None:
        self.cwd = cwd
        self.arguments = arguments
        self.environment = environment
        self.stdin = stdin


def verb_of(message: bytes) -> bytes:
    """What is asked; empty for what is no message of this version. Pure."""
    fields = message.split(b"\0", 2)
    return fields[1] if len(fields) > 1 and fields[0] == MAGIC else b""


def unpack_request(message: bytes) -> Request:
    """Raises: BadRequest. Pure."""
    fields = message.split(b"\0", 3)
    if len(fields) != 4 or fields[0] != MAGIC or fields[1] != START:
        raise BadRequest("not a request of this version")
    try:
        words, variables = [int(count) for count in fields[2].split(b" ")]
    except ValueError:
        raise BadRequest("its counts are not two numbers") from None
    if not 0 < words <= WORDS_MAX or variables < 0:
        raise BadRequest("its counts are out of range")
    items = fields[3].split(b"\0", 1 + words + variables)
    if len(items) != 2 + words + variables:
        raise BadRequest("it ends early")
    environment = {}
    for item in items[1 + words : -1]:
        name, _, value = os.fsdecode(item).partition("=")
        environment[name] = value
    return Request(os.fsdecode(items[0]), [os.fsdecode(word) for word in items[1 : 1 + words]], environment, items[-1])


def pack_answer(outcome: bytes, text: str) -> bytes:
    """An outcome (OK, REFUSED, STALE of launch.py) and the address or the reason. Pure."""
    return b"\0".join((MAGIC, outcome, os.fsencode(text)))
