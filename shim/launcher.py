"""Write the program containerd executes, lean: `python -m shim.launcher DIRECTORY`.

What pip makes of an entry point starts Python with `site`, which reads every .pth file there is, and imports `re`: four
times the processor time of what is to be done. This one starts it without, and says where our modules are.
"""

import os
import shlex
import sys

NAME = "containerd-shim-shimd-v2"
# The kernel takes this much of a first line (execve(2), Linux 5.1; BINPRM_BUF_SIZE), of which older ones take 127.
LINE_MAX_BYTES = 127
LIBRARIES = ("google.protobuf", "prctl", "cgroupspy")


def launcher(python: str, paths: "list[str]") -> str:
    """The text of the program. Pure."""
    code = f"import sys\nsys.path[:0] = {paths!r}\nfrom shim.launch import main\nsys.exit(main())\n"
    line = f"#!{python} -IS\n"
    if len(line) <= LINE_MAX_BYTES and " " not in python:
        return line + code
    # A polyglot: the shell executes its second line, to Python that is a string.
    return f"#!/bin/sh\n'''exec' {shlex.quote(python)} -IS \"$0\" \"$@\"\n' '''\n{code}"


def module_paths() -> "list[str]":
    """The directories that hold our packages and the libraries they stand on, as this interpreter finds them."""
    from importlib.util import find_spec

    paths = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    for name in LIBRARIES:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{name} is not installed for {sys.executable}")
        levels = name.count(".") + (2 if spec.submodule_search_locations is not None else 1)
        path = spec.origin
        for _ in range(levels):
            path = os.path.dirname(path)
        if path not in paths:
            paths.append(path)
    return paths


def install(directory: str) -> str:
    """Put the program into a directory, in one step; the value is its path. Raises: OSError."""
    path = os.path.join(directory, NAME)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(launcher(sys.executable, module_paths()))
    os.chmod(path + ".new", 0o755)  # noqa: S103 - a program, without a secret in it
    os.rename(path + ".new", path)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m shim.launcher DIRECTORY")
    os.write(1, f"{install(sys.argv[1])}\n".encode())
