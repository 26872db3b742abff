"""What people type becomes a value, or a sentence that says what to type instead."""

import pytest

from daemon.spec import (
    SpecError,
    User,
    merge_env,
    parse_cpus,
    parse_env,
    parse_env_file,
    parse_memory,
    parse_memory_limit,
    parse_memory_swap,
    parse_rlimit,
    parse_signal,
    parse_user,
)

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# a comment
web:x:1000:1000::/home/web:/bin/sh
42:x:4200:4200::/:/bin/sh
+nis
broken:x
"""
GROUP = """\
root:x:0:
web:x:1000:
video:x:44:web,other
audio:x:29:other,web
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1048576", 2**20),
        ("512m", 512 * 2**20),
        ("512M", 512 * 2**20),
        ("64MiB", 64 * 2**20),
        ("64mb", 64 * 2**20),
        ("1.5g", 3 * 2**29),
        ("100b", 100),
        ("2k", 2048),
        (" 1t ", 2**40),
    ],
)
def test_memory_sizes_are_powers_of_1024(text: str, expected: int) -> None:
    assert expected == parse_memory(text)


@pytest.mark.parametrize(
    "text", ["", "m", "abc", "1x", "1mm", "-5m", "0", "nan", "inf", "1e3", "1_000", "1.", ".", "٣m", "1 m"]
)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_memory(text)

    assert repr(text) in str(refused.value)


def test_what_no_spec_can_hold_is_refused() -> None:
    assert parse_memory("8191.999p") < 2**63
    for text in ("8192p", "99999999999t"):
        with pytest.raises(SpecError, match="more than there can be"):
            parse_memory(text)


def test_a_limit_leaves_the_runtime_room() -> None:
    """And says how much that is, where the runtime would only say that it failed."""
    assert parse_memory_limit("6m") == 6 * 2**20
    for text in ("1", "100k", "5.9m"):
        with pytest.raises(SpecError, match=f"'{text}' is too little .* the least is 6m"):
            parse_memory_limit(text)


def test_swap_may_be_unlimited() -> None:
    assert [parse_memory_swap(text) for text in ("-1", "unlimited", "1g")] == [-1, -1, 2**30]


@pytest.mark.parametrize(
    ("text", "quota"), [("1", 100_000), ("1.5", 150_000), ("0.01", 1_000), ("0.333", 33_300), ("64", 6_400_000)]
)
def test_cpus_become_a_quota_of_the_default_period(text: str, quota: int) -> None:
    assert (quota, 100_000) == parse_cpus(text)


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "nan", "0.001", "1,5"])
def test_what_is_no_number_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="cpus"):
        parse_cpus(text)


def test_env_takes_a_bare_name_from_the_given_environment() -> None:
    """As docker: a bare name that is set is passed on, one that is not is left out."""
    made = parse_env(["A=1", "HERE", "AWAY", "EMPTY=", "B=x=y"], {"HERE": "yes"})

    assert made == ["A=1", "HERE=yes", "EMPTY=", "B=x=y"]


@pytest.mark.parametrize("item", ["=x", "", "A B=x", "A=\0"])
def test_env_without_a_usable_name_is_refused(item: str) -> None:
    with pytest.raises(SpecError, match="environment"):
        parse_env([item])


def test_env_file_keeps_quotes_and_skips_comments() -> None:
    text = '\ufeff# first\r\nA=1\r\n\n   B= two words "quoted" # no comment\n\t# indented comment\nHERE\nGONE\n'

    made = parse_env_file(text, {"HERE": "yes"})

    assert made == ["A=1", 'B= two words "quoted" # no comment', "HERE=yes"]


def test_env_file_errors_name_the_line() -> None:
    with pytest.raises(SpecError, match=r"^line 2: .*blank"):
        parse_env_file("A=1\nB =2\n")
    with pytest.raises(SpecError, match=r"^line 1: .*no name"):
        parse_env_file("=2\n")


def test_a_later_env_value_wins_at_the_first_ones_place() -> None:
    assert merge_env(["A=1", "B=2"], ["A=3", "C="]) == ["A=3", "B=2", "C="]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", User(0, 0)),
        ("web", User(1000, 1000, (44, 29))),
        ("1000", User(1000, 1000, (44, 29))),
        ("web:video", User(1000, 44)),
        ("web:7", User(1000, 7)),
        ("4711", User(4711, 0)),
        ("4711:web", User(4711, 1000)),
        ("42", User(4200, 4200)),
    ],
)
def test_users_are_looked_up_by_name_then_by_number(text: str, expected: User) -> None:
    assert expected == parse_user(text, PASSWD, GROUP)


def test_numbers_need_no_files() -> None:
    assert User(33, 33) == parse_user("33:33")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wbe", "did you mean 'web'"),
        ("nobody", "use a numeric uid"),
        ("web:vdeo", "did you mean 'video'"),
        ("web:nothing", "use a numeric gid"),
        ("web:", "incomplete"),
        (":web", "incomplete"),
        ("", "incomplete"),
        ("4294967295", "from 0 to"),
        ("0:4294967295", "from 0 to"),
    ],
)
def test_an_unknown_user_or_group_is_refused_with_the_nearest(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse_user(text, PASSWD, GROUP)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nofile=1024:4096", {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}),
        ("NPROC=50", {"type": "RLIMIT_NPROC", "soft": 50, "hard": 50}),
        ("rlimit_core=0:unlimited", {"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1}),
        ("core=-1", {"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1}),
    ],
)
def test_ulimits(text: str, expected: dict[str, object]) -> None:
    assert expected == parse_rlimit(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nofiles=1", "did you mean 'nofile'"),
        ("nofile", "write nofile=SOFT"),
        ("nofile=", "write nofile=SOFT"),
        ("nofile=1:x", "write nofile=SOFT"),
        ("nofile=2:1", "may not exceed"),
    ],
)
def test_wrong_ulimits_are_refused(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse_rlimit(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("TERM", 15), ("SIGTERM", 15), ("sigkill", 9), ("10", 10), ("RTMIN+3", 37), ("RTMAX", 64)]
)
def test_signals_by_name_and_number(text: str, expected: int) -> None:
    assert expected == parse_signal(text)


@pytest.mark.parametrize("text", ["0", "65", "TERMM", "", "RTMIN+x", "RTMAX+1", "SIG"])
def test_unknown_signals_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="signal"):
        parse_signal(text)


def test_a_misspelt_signal_names_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean 'TERM'"):
        parse_signal("TERMM")
