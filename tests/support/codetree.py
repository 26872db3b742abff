"""A second installation of the shim's code, of another version and with whatever is wrong with it."""

import os
import shutil

HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class CodeTree:
    """Owns a copy of the packages below a folder. `paths` is what an upgrade to it is asked with."""

    def __init__(self, folder: str, version: str) -> None:
        self.path = os.path.join(folder, f"code-{version}")
        self.version = version
        self._edits = 0
        for package in ("shim", "ttrpc"):
            shutil.copytree(os.path.join(HERE, package), os.path.join(self.path, package))
        self.edit("shim/version.py", 'VERSION = "', f'VERSION = "{version}"  # was "')

    @property
    def paths(self) -> list[str]:
        from shim.launcher import module_paths

        return [self.path, *module_paths()[1:]]

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace the first occurrence."""
        path = os.path.join(self.path, name)
        with open(path, encoding="utf-8") as file:
            text = file.read()
        assert old in text, f"{name} has no {old!r}"
        with open(path, "w", encoding="utf-8") as file:
            file.write(text.replace(old, new, 1))
        self._edits += 1
        os.utime(path, (self._edits, self._edits))  # by which Python knows that what it has compiled is out of date
