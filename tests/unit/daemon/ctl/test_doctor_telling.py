"""What the doctor says is read at night: short, the worst first, and what can be pasted on lines of its own."""

import json
from typing import Any

import pytest

from daemon.config import Config
from daemon.ctl.doctor import telling
from daemon.ctl.doctor.finding import ERROR, NOTE, WARNING, Finding, Kind, Repair
from daemon.ctl.doctor.host import Feature
from daemon.ctl.doctor.telling import Done, Report

SOCKET = Kind("stale-socket", WARNING, "harmless", "remove it")
HOLE = Kind("permissions", ERROR, "others may read it", "take the rights away")
FEATURE = Kind("feature", NOTE, "no pressure", "nothing")
PATH = "/run/shimd/io.containerd.runtime.v2.task/a-name-with-hyphens-that-is-long/config.json"


def nothing() -> None:
    """A repair that is only told."""


def found(kind: Kind, subject: str, *run: str) -> Finding:
    return kind.of(subject, "a fact", *run, repair=None if kind is FEATURE else Repair(f"mend {subject}", nothing))


def told(capsys: Any, *findings: Finding, done: "list[Done] | None" = None) -> str:
    features = [
        Feature("PSI", True, "", "", ""),
        Feature("cgroups", True, "v2", "", ""),
        Feature("x", False, "", "", ""),
    ]
    telling.print_all(Report(list(findings), features, None, Config()), done)
    text: str = capsys.readouterr().out
    return text


def test_a_command_or_a_path_is_never_cut_in_two(capsys: pytest.CaptureFixture[str]) -> None:
    command = f"chmod 600 {PATH} {PATH}"
    text = told(capsys, found(HOLE, PATH, command))

    assert f"\n      {command}\n" in text
    assert PATH in text.partition("means:")[0].partition("error: permissions")[2]
    assert all(len(line) <= 120 for line in text.splitlines() if PATH not in line)


def test_many_of_a_kind_are_explained_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, *[found(SOCKET, f"/s/{number:03}", f"rm /s/{number:03}") for number in range(50)])

    assert text.count("means: harmless") == 1
    assert "stale-socket: 50 of them" in text
    assert text.count("/s/049") == 1, "the table names all"
    assert text.count("rm /s/") == telling.SHOWN_MAX
    assert "and 40 more" in text


def test_what_fix_does_is_said_unless_the_command_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--fix: mend a" in told(capsys, found(SOCKET, "a"))
    text = told(capsys, found(SOCKET, "a", "rm a"))
    assert "--fix does so" in text
    assert "--fix: mend" not in text


@pytest.mark.parametrize(
    ("findings", "is_fixing", "expected"),
    [
        ([found(FEATURE, "a")], False, "1 note, nothing to act on"),
        (
            [found(HOLE, "a"), found(SOCKET, "b"), found(SOCKET, "c")],
            False,
            "1 error, 2 warnings; --fix repairs 3 of them",
        ),
        ([found(SOCKET, "b"), found(FEATURE, "c")], True, "1 warning, 1 note; 1 could not be repaired"),
        ([HOLE.of("a", "b")], True, "1 error"),
    ],
)
def test_the_last_line_counts(findings: "list[Finding]", is_fixing: bool, expected: str) -> None:
    assert telling.summary(findings, is_fixing=is_fixing) == expected


def test_fix_says_what_it_did_and_could_not_do(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = found(SOCKET, "a"), found(HOLE, "b")

    text = told(capsys, done=[Done(good), Done(bad, "it is a link: b")])
    assert text.startswith("fixed: mend a\ncould not mend b: it is a link: b\n\nno daemon;")
    assert "has: PSI, cgroups (v2)\nnothing is wrong here\n" in text
    assert told(capsys, done=[]).startswith("there is nothing here that --fix repairs\n")
    assert told(capsys).startswith("no daemon;")


def test_for_programs_it_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    telling.print_json(Report([found(SOCKET, "a", "rm a")], [], None, Config()), [Done(found(HOLE, "b"), "no")])
    made = json.loads(capsys.readouterr().out)

    assert made["findings"] == [
        {
            "check": "stale-socket", "severity": "warning", "subject": "a", "what": "a fact", "means": "harmless",
            "do": "remove it", "run": ["rm a"], "fix": "mend a",
        }
    ]  # fmt: skip
    assert [(one["subject"], one["failure"]) for one in made["fixed"]] == [("b", "no")]
    assert made["daemon"] is None
