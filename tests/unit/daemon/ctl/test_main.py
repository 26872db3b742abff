"""The two stages of parsing, the help that teaches, and what ends in which exit code."""

import argparse

import pytest

from daemon.ctl import __main__ as main
from daemon.ctl import commands
from daemon.ctl.errors import CtlError, UsageError
from daemon.spec_parse import SpecError


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("SHIMD_ADDRESS", "SHIMD_NAMESPACE", "SHIMD_STATE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def options(*words: str) -> tuple[str, str, str, float]:
    early, rest = main._global_options(list(words))
    name, entry, left = commands.find(rest)
    assert entry is not None
    args = main.command_parser(name, entry.load()).parse_args(left, early)
    return args.address, args.namespace, args.state, args.reconnect


def test_defaults_then_environment_then_options(environment: pytest.MonkeyPatch) -> None:
    assert options("ps") == ("/run/shimd/shimd.sock.ttrpc", "default", "/run/shimd", 10.0)

    environment.setenv("SHIMD_ADDRESS", "/a")
    environment.setenv("SHIMD_NAMESPACE", "n")
    environment.setenv("SHIMD_STATE", "/s")
    assert options("ps") == ("/a", "n", "/s", 10.0)

    assert options("--address", "/b", "-n", "m", "--state", "/t", "--reconnect", "1", "ps") == ("/b", "m", "/t", 1.0)


def test_global_options_may_follow_the_command(environment: pytest.MonkeyPatch) -> None:
    assert options("--address", "/a", "ps", "--address=/b", "--namespace", "x", "--reconnect=2") == (
        "/b",
        "x",
        "/run/shimd",
        2.0,
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--adress", "x", "ps"], "--adress"),
        (["--state"], "needs a value"),
        (["--reconnect", "x", "ps"], "'x'"),
        (["--reconnect", "nan", "ps"], "'nan'"),
        (["ps", "--reconnect", "-1"], "number of seconds"),
        (["events", "--since", "9" * 23], "sequence number"),
    ],
)
def test_wrong_options_before_the_command(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A description, its options, and at least one example that begins with it."""
    assert main.main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out

    assert f"usage: shimctl {name}" in text
    assert "examples:" in text
    assert f"shimctl {name.split()[0]}" in text.partition("examples:")[2] or "--state" in text.partition("examples:")[2]
    assert "--address SOCKET" in text


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_option_has_a_help_of_its_own(name: str) -> None:
    parser = main.command_parser(name, commands.COMMANDS[name].load())

    assert [action.dest for action in parser._actions if action.option_strings and not action.help] == []


def test_the_overview_lists_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out

    assert [name for name in commands.COMMANDS if f"  {name} " not in text] == []
    assert "123 its status is unknown; 125 shimctl or the daemon failed" in text


def test_a_group_alone_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["shim"]) == 0
    text = capsys.readouterr().out

    assert "shim delete" in text
    assert "shimctl [OPTIONS] shim COMMAND" in text
    assert "inspect" not in text


@pytest.mark.parametrize(
    ("words", "says"),
    [(["rn"], "did you mean `shimctl run`"), (["zzz"], "--help lists them"), (["shim", "lst"], "shim list")],
)
def test_a_mistyped_command_is_corrected(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(words) == 2
    assert says in capsys.readouterr().err


def test_no_command_shows_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 2
    assert "COMMAND …" in capsys.readouterr().out


def failing(error: BaseException, *, passes_code: bool) -> commands.Entry:
    def run(_args: argparse.Namespace) -> int:
        raise error

    def no_options(_parser: argparse.ArgumentParser) -> None:
        pass

    class Made(commands.Entry):
        """An entry whose command fails."""

        def load(self) -> commands.Command:
            return commands.Command(run, description="d", examples="e", options=no_options, passes_code=passes_code)

    return Made("", "", "")


@pytest.mark.parametrize(
    ("error", "passes_code", "code"),
    [
        (CtlError("no"), False, 1),
        (CtlError("no"), True, 125),
        (CtlError("no", exit_code=127), True, 127),
        (UsageError("no"), False, 2),
        (UsageError("no"), True, 125),
        (SpecError("no size"), False, 2),
        (FileNotFoundError(2, "No such file", "/x"), False, 1),
        (KeyboardInterrupt(), True, 130),
    ],
)
def test_exit_codes(
    error: BaseException,
    passes_code: bool,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(commands.COMMANDS, "ps", failing(error, passes_code=passes_code))

    assert code == main.main(["ps"])
    if isinstance(error, Exception):
        assert capsys.readouterr().err.startswith("shimctl: ")


@pytest.mark.parametrize(("words", "code"), [(["ps", "--nonsense"], 2), (["run", "--nonsense"], 125)])
def test_a_wrong_option(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert code == main.main(words)
    assert "--nonsense" in capsys.readouterr().err or words[0] == "run"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["stats", "--no-strem"], "did you mean --no-stream?"),
        (["stats", "--once"], "shimctl stats --help"),
        (["ps", "web"], "shimctl ps --help"),
        (["logs"], "shimctl logs --help"),
    ],
)
def test_wrong_usage_is_told_in_two_lines(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong, and where to read on; not the whole usage."""
    assert main.main(words) == 2
    what, hint = capsys.readouterr().err.splitlines()
    assert what.startswith("shimctl: ")
    assert says in hint


def test_help_is_a_word_too(capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in ((["help"], "usage: shimctl [OPTIONS] COMMAND"), (["help", "ps"], "usage: shimctl ps")):
        assert main.main(words) == 0
        assert says in capsys.readouterr().out
    assert main.main(["help", "shim"]) == 0
    assert main.main(["help", "nope"]) == 2


def test_an_error_of_several_lines_is_indented_and_its_hint_comes_last(capsys: pytest.CaptureFixture[str]) -> None:
    main.complain("first\nsecond", "do this")

    assert capsys.readouterr().err == "shimctl: first\n  second\n  → do this\n"
