"""What containers wrote about themselves, and what their logs hold."""

import json
import os
import re
from collections.abc import Iterator


class Truth:
    """The folder every container writes into. Owns nothing: it lies in their root file system."""

    def __init__(self, rootfs: str) -> None:
        self.folder = os.path.join(rootfs, "truth")
        os.makedirs(self.folder, exist_ok=True)

    def told(self, name: str) -> list[str]:
        """The lines of one file; none when it is not there."""
        try:
            with open(os.path.join(self.folder, name), encoding="ascii") as file:
                return file.read().split("\n")[:-1]
        except FileNotFoundError:
            return []

    def lines(self, name: str) -> int | None:
        """How many lines a container says it has written; None: it was not asked, or killed before."""
        told = self.told(f"{name}.lines")
        return int(told[0]) if told else None

    def hung_up_at(self, name: str) -> int | None:
        """The line at which a container was told that its terminal had hung up; None: it was not."""
        told = self.told(f"{name}.hup")
        return int(told[0]) if told else None

    def release(self, name: str) -> None:
        """Tell a container to end by itself."""
        with open(os.path.join(self.folder, f"{name}.go"), "w", encoding="ascii"):
            pass

    def forget(self, name: str) -> None:
        """Nothing more is asked of this one."""
        for path in (name, f"{name}.lines", f"{name}.hup", f"{name}.go"):
            try:
                os.unlink(os.path.join(self.folder, path))
            except FileNotFoundError:
                pass


class Log:
    """Lines of a log and its rotated files, oldest first, as numbers; what is no line of ours is `strange`."""

    def __init__(self, path: str, name: str, *, is_json: bool) -> None:
        self.numbers: list[int] = []
        self.strange: list[str] = []
        wanted = re.compile(rf"{re.escape(name)} (\d+)")
        for line in _lines(path, is_json=is_json):
            found = wanted.fullmatch(line.rstrip("\r"))
            if found is None:
                self.strange.append(line)
            else:
                self.numbers.append(int(found[1]))


def log_files(path: str) -> list[str]:
    """A log's files, the oldest first."""
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    older = sorted(int(each[len(name) + 1 :]) for each in names if re.fullmatch(rf"{re.escape(name)}\.\d+", each))
    found = [f"{path}.{number}" for number in reversed(older)]
    return [*found, path] if name in names else found


def _lines(path: str, *, is_json: bool) -> Iterator[str]:
    rest = ""
    for file_path in log_files(path):
        with open(file_path, encoding="utf-8", errors="replace") as file:
            for line in file:
                text = line
                if is_json:
                    try:
                        text = json.loads(line)["log"]
                    except (ValueError, KeyError, TypeError):
                        yield f"no record: {line!r}"
                        continue
                rest += text
                if rest.endswith("\n"):
                    yield rest[:-1]
                    rest = ""
    if rest:
        yield f"unfinished: {rest!r}"
