"""TOML text ↔ `Config`. A key that is not known is an error naming its line and the nearest one that is."""

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from daemon.config import DEFAULT_RUNTIME, Config, Runtime


class ConfigError(Exception):
    """The configuration cannot be used; the message names file, line and key."""


def load(path: str, *, may_be_missing: bool = False) -> Config:
    """Read a file.

    Raises: ConfigError; also for a missing file, unless ``may_be_missing``: then the defaults are meant.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        if may_be_missing:
            return Config()
        raise ConfigError(f"{path}: no such file; `shimd config default` prints one to start from") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return parse(raw.decode("utf-8", "surrogateescape"), path)


def parse(text: str, name: str = "config") -> Config:
    """Read a text; ``name`` stands for the file in messages.

    Raises: ConfigError.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: {error}") from None
    reader = _Reader(name, text)
    made: Config = reader.read(Config, tables, ())
    return made


def checked(config: Config) -> Config:
    """The same configuration, if its directories may be used: for values that came from a command line.

    Raises: ConfigError.
    """
    for name in ("root_dir", "state_dir"):
        value = getattr(config, name)
        complaint = Config.__dataclass_fields__[name].metadata["check"](value)
        if complaint is not None:
            raise ConfigError(f"{name}: {complaint}, not {value!r}")
    return config


class _Reader:
    """Turns tables into dataclasses, with the text at hand to name lines."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text

    def fail(self, path: tuple[str, ...], reason: str) -> ConfigError:
        line = _line_of(self.text, path)
        where = f"{self.name}:{line}" if line else self.name
        return ConfigError(f"{where}: {'.'.join(path)}: {reason}")

    def read(self, made: type[Any], table: Mapping[str, Any], path: tuple[str, ...]) -> Any:
        fields = {field.name: field for field in dataclasses.fields(made)}
        values: dict[str, Any] = {}
        for key, value in table.items():
            here = (*path, key)
            if key not in fields:
                raise self.fail(here, _unknown(key, list(fields), path))
            field = fields[key]
            if key == "runtimes" and made is Config:
                values[key] = self._runtimes(value, here)
            elif dataclasses.is_dataclass(field.type):
                if not isinstance(value, dict):
                    raise self.fail(here, "is a section: write it as [" + ".".join(here) + "]")
                values[key] = self.read(field.type, value, here)  # type: ignore[arg-type]
            else:
                values[key] = self._value(field, value, here)
        return made(**values)

    def _runtimes(self, value: Any, path: tuple[str, ...]) -> dict[str, Runtime]:
        if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
            raise self.fail(path, 'is a section for each runtime: write [runtimes."NAME"]')
        named = {name: self.read(Runtime, table, (*path, name)) for name, table in value.items()}
        return {DEFAULT_RUNTIME: Runtime(), **named}

    def _value(self, field: "dataclasses.Field[Any]", value: Any, path: tuple[str, ...]) -> Any:
        kind: Any = field.type
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.fail(path, f"must be {_KINDS[kind]}, not {value!r}")
        check = field.metadata["check"]
        complaint = check(value) if check is not None else None
        if complaint is not None:
            raise self.fail(path, f"{complaint}, not {value!r}")
        return value


_KINDS: dict[Any, str] = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def _unknown(key: str, known: list[str], path: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    where = f"in [{'.'.join(path)}]" if path else "at the top"
    hint = f"; did you mean {near[0]}?" if near else f"; known {where}: {', '.join(known)}"
    return f"no such key {where}{hint}"


_HEADER = re.compile(r"^\s*\[([^\[\]]+)\]")
_ASSIGNMENT = re.compile(r"^\s*([A-Za-z0-9_\"'.-]+)\s*=")


def _line_of(text: str, path: tuple[str, ...]) -> int | None:
    """The line a key stands on: tomllib keeps none, so find its header or assignment again. None: written unusually."""
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header:
            section = _split(header.group(1))
            if section[: len(path)] == path:
                return number
            continue
        assignment = _ASSIGNMENT.match(line)
        if assignment and (*section, *_split(assignment.group(1)))[: len(path)] == path:
            return number
    return None


def _split(key: str) -> tuple[str, ...]:
    """``a."b.c".d`` as its parts."""
    return tuple(part.strip("\"'") for part in re.findall(r"\"[^\"]*\"|'[^']*'|[^.\s]+", key.strip()))


# --- the commented default


def default_text() -> str:
    """The default configuration as TOML, every key with its meaning. Parses to exactly the defaults."""
    config = Config()
    lines = [
        "# Configuration of shimd. Every key is shown with its default; leave out what you do not change.",
        "# `shimd config check FILE` reads a file as the daemon would.",
        "",
    ]
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if field.name == "runtimes":
            for name, runtime in value.items():
                lines += ["", *_comment(field), f'[runtimes."{name}"]', *_keys(runtime)]
        elif dataclasses.is_dataclass(value):
            lines += ["", *_comment(field), f"[{field.name}]", *_keys(value)]
        else:
            lines += [*_comment(field), _assignment(field, value)]
    return "\n".join(lines) + "\n"


def _keys(section: Any) -> list[str]:
    lines: list[str] = []
    for field in dataclasses.fields(section):
        lines += [*_comment(field), _assignment(field, getattr(section, field.name))]
    return lines


def _comment(field: "dataclasses.Field[Any]") -> list[str]:
    return [f"# {field.metadata['doc']}."]


def _assignment(field: "dataclasses.Field[Any]", value: Any) -> str:
    if isinstance(value, bool):
        return f"{field.name} = {'true' if value else 'false'}"
    if isinstance(value, str):
        return f'{field.name} = "{value}"'
    if field.metadata["form"] == "octal":
        return f"{field.name} = 0o{value:o}"
    return f"{field.name} = {value}"
