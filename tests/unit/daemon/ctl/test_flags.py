"""Ids and commands among words; log options; restart policies."""

import argparse

import pytest

from daemon.ctl import flags
from daemon.ctl.errors import UsageError
from daemon.spec_parse import SpecError


def split(*words: str, name: str | None = None, bundle: str | None = None) -> tuple[str, list[str], list[str]]:
    args = argparse.Namespace(name=name, bundle=bundle, rootfs="/r", command="run")
    return flags.split_words(args, words)


@pytest.mark.parametrize(
    ("words", "container_id", "command"),
    [
        (("web", "--", "sh", "-c", "x"), "web", ["sh", "-c", "x"]),
        (("--", "sh", "-c", "x"), "", ["sh", "-c", "x"]),
        (("web", "--", "echo", "--", "y"), "web", ["echo", "--", "y"]),
    ],
)
def test_the_command_follows_the_dashes(words: tuple[str, ...], container_id: str, command: list[str]) -> None:
    assert split(*words) == (container_id, command, [])


def test_with_a_name_every_word_is_the_command() -> None:
    """As docker has it, `--` in it or not."""
    assert split("sh", "-c", "x", name="web") == ("web", ["sh", "-c", "x"], [])
    assert split("echo", "--", "y", name="web") == ("web", ["echo", "--", "y"], [])
    assert split("--", "sh", name="web") == ("web", ["sh"], [])


def test_a_bundle_needs_no_command() -> None:
    assert split("web", bundle="/b") == ("web", [], [])
    assert split(bundle="/b") == ("", [], [])
    assert split("web", "--", "sh", bundle="/b") == ("web", ["sh"], [])


def test_options_between_id_and_dashes_are_left_for_the_parser() -> None:
    assert split("web", "-d", "--rm", "--", "sh") == ("web", ["sh"], ["-d", "--rm"])
    assert split("web", "-d", bundle="/b") == ("web", [], ["-d"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "nothing to run"),
        (("web",), "after --"),
        (("web", "sh"), "after --"),
        (("a", "b", "--", "sh"), "only the id"),
    ],
)
def test_what_is_ambiguous_is_refused_and_shown_right(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        split(*words)

    assert "shimctl run … --rootfs /r" in refused.value.hint


def test_pairs() -> None:
    assert flags.key_values(["a=b=c", "d", "a=e"], "label") == {"a": "e", "d": ""}
    with pytest.raises(UsageError, match="has no name"):
        flags.key_values(["=x"], "label")


@pytest.mark.parametrize("policy", ["no", "always", "unless-stopped", "on-failure", "on-failure:3"])
def test_restart_policies(policy: str) -> None:
    assert policy == flags.check_restart(policy)


@pytest.mark.parametrize("policy", ["", "sometimes", "on-failure:", "on-failure:x", "always:3"])
def test_other_policies_are_refused(policy: str) -> None:
    with pytest.raises(UsageError, match="not known"):
        flags.check_restart(policy)


def test_log_options() -> None:
    assert flags.parse_log_options(["max-size=10m,max-file=3", "mode=non-blocking"]) == {
        "max-size": 10 << 20,
        "max-files": 3,
        "mode": "drop",
    }


@pytest.mark.parametrize("text", ["max-size=big", "max-file=0", "max-file=x", "mode=maybe", "colour=red", "max-size"])
def test_wrong_log_options_are_refused(text: str) -> None:
    with pytest.raises((UsageError, SpecError)):
        flags.parse_log_options([text])
