"""THE table of commands: what exists, where it lives, what one line says about it. Importing it costs nothing."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


class Command:
    """One command: the text that teaches it, the options it takes, the function that does it.

    ``passes_code``: its exit code is a container's, so that our own failures must be told apart (125).
    """

    __slots__ = ("description", "examples", "options", "passes_code", "run", "usage")

    def __init__(
        self,
        run: "Callable[[argparse.Namespace], int]",
        *,
        description: str,
        examples: str,
        options: "Callable[[argparse.ArgumentParser], None]",
        usage: str | None = None,
        passes_code: bool = False,
    ) -> None:
        self.run = run
        self.description = description
        self.examples = examples
        self.options = options
        self.usage = usage
        self.passes_code = passes_code


class Entry:
    """A row of the table: the module and the name of the Command in it, imported only when chosen."""

    __slots__ = ("attribute", "module", "summary")

    def __init__(self, module: str, attribute: str, summary: str) -> None:
        self.module = module
        self.attribute = attribute
        self.summary = summary

    def load(self) -> Command:
        """Import the command."""
        import importlib

        command: Command = getattr(importlib.import_module(f"daemon.ctl.{self.module}"), self.attribute)
        return command


SECTIONS: dict[str, dict[str, Entry]] = {
    "Containers": {
        "run": Entry("run", "RUN", "create and start a container, here or in the background"),
        "create": Entry("run", "CREATE", "create a container whose process waits for `start`"),
        "start": Entry("start", "START", "start created containers, or stopped ones again"),
        "stop": Entry("stop", "STOP", "ask containers to end, then make them"),
        "kill": Entry("signalling", "KILL", "send a signal"),
        "pause": Entry("signalling", "PAUSE", "freeze every process of a container"),
        "resume": Entry("signalling", "RESUME", "let a paused container go on"),
        "wait": Entry("wait", "WAIT", "wait for the end and tell the exit code"),
        "rm": Entry("remove", "REMOVE", "remove containers with their task and log"),
        "update": Entry("update", "UPDATE", "change limits and restart policy of a running container"),
    },
    "Inside a container": {
        "exec": Entry("execute", "EXEC", "run one more program in a running container"),
        "attach": Entry("attach", "ATTACH", "connect to a container's input and output"),
        "logs": Entry("logs", "LOGS", "what a container has written"),
        "top": Entry("processes", "TOP", "the processes of a container"),
    },
    "Looking": {
        "ps": Entry("ps", "PS", "list containers"),
        "inspect": Entry("describe", "INSPECT", "everything known about a container, as JSON"),
        "stats": Entry("stats", "STATS", "cpu, memory, I/O and processes, live"),
        "events": Entry("events", "EVENTS", "what happened, from any point on"),
        "version": Entry("info", "VERSION", "versions of shimctl and the daemon"),
        "doctor": Entry("doctor.command", "DOCTOR", "what is wrong on this host, and how to repair it"),
        "daemon info": Entry("info", "DAEMON_INFO", "the daemon's health and that of every shim"),
    },
    "The daemon": {
        "daemon upgrade": Entry("upgrade", "UPGRADE", "have another program take its place, unnoticed"),
    },
    "Shims, also with the daemon down": {
        "shim list": Entry("shims", "LIST", "every shim on this host"),
        "shim state": Entry("shims", "STATE", "state of one container, asked of its shim"),
        "shim exec": Entry("shim_exec", "EXEC", "run a program in the container"),
        "shim kill": Entry("shims", "KILL", "send a signal"),
        "shim logs": Entry("shims", "LOGS", "what the container has written"),
        "shim wait": Entry("shims", "WAIT", "wait for the end and tell the exit code"),
        "shim stack": Entry("shim_stack", "STACK", "where the shim is right now, also one that answers nobody"),
        "shim upgrade": Entry("shim_upgrade", "UPGRADE", "have running shims go on as this version, in place"),
        "shim delete": Entry("shims", "DELETE", "delete the task and end its shim"),
    },
    "Shell": {
        "completion bash": Entry("completion", "BASH", "print the completion script for bash"),
    },
}

COMMANDS: dict[str, Entry] = {name: entry for section in SECTIONS.values() for name, entry in section.items()}
HIDDEN: dict[str, Entry] = {"__complete": Entry("completion", "COMPLETE", "candidates for the shell, one a line")}
GROUPS: frozenset[str] = frozenset(name.split()[0] for name in COMMANDS if " " in name)


def find(words: "list[str]") -> "tuple[str, Entry | None, list[str]]":
    """Split words into a command's name, its table row (None: no such command) and the words left for it."""
    if not words:
        return "", None, []
    name, rest = words[0], words[1:]
    if name in GROUPS and rest and not rest[0].startswith("-"):
        name, rest = f"{name} {rest[0]}", rest[1:]
    return name, COMMANDS.get(name) or HIDDEN.get(name), rest


def nearest(name: str) -> str:
    """The known command most like a mistyped one, or nothing."""
    import difflib

    found = difflib.get_close_matches(name, COMMANDS, n=1)
    return found[0] if found else ""
