"""The configuration file: its default is its documentation, and its mistakes are named where they stand."""

import dataclasses
import itertools
import re

import pytest

from daemon import configfile
from daemon.__main__ import EXIT_CONFIG
from daemon.config import DEFAULT_RUNTIME, Config, Runtime, Socket
from daemon.configfile import ConfigError
from daemon.unit import service_text, socket_text


def test_the_printed_default_parses_to_the_defaults() -> None:
    """`shimd config default` shows what is used without a file, key for key."""
    assert configfile.parse(configfile.default_text()) == Config()


def test_the_printed_default_explains_every_key() -> None:
    """No assignment without a comment on the line above it."""
    lines = configfile.default_text().splitlines()
    bare = [line for above, line in itertools.pairwise(lines) if " = " in line and not above.startswith("#")]
    assert bare == []


def test_a_file_changes_what_it_names_and_nothing_else() -> None:
    """Whole numbers serve where seconds are meant; a runtime named anew stands beside the default one."""
    config = configfile.parse(
        'state_dir = "/run/x"\n[timeouts]\ncall_s = 3\n[runtimes."io.containerd.runc.v2"]\nrunc = "/usr/bin/crun"\n'
    )
    assert config.timeouts.call_s == 3.0
    assert config.timeouts.create_s == Config().timeouts.create_s
    assert config.socket_path == "/run/x/shimd.sock.ttrpc"
    assert config.bundle("ns", "c1") == "/run/x/io.containerd.runtime.v2.task/ns/c1"
    assert config.runtimes["io.containerd.runc.v2"] == Runtime(runc="/usr/bin/crun")
    assert DEFAULT_RUNTIME in config.runtimes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[recovery]\n\nparalel = 3\n",
            "f.toml:3: recovery.paralel: no such key in [recovery]; did you mean parallel?",
        ),
        ("state_dri = '/x'\n", "f.toml:1: state_dri: no such key at the top; did you mean state_dir?"),
        ("[sokcet]\nmode = 1\n", "f.toml:1: sokcet: no such key at the top; did you mean socket?"),
        ("log.levle = 'info'\n", "f.toml:1: log.levle: no such key in [log]; did you mean level?"),
        ('[runtimes."a.b.c"]\nrunk = "x"\n', "f.toml:2: runtimes.a.b.c.runk: no such key"),
        ("[timeouts]\ncall_s = 'soon'\n", "f.toml:2: timeouts.call_s: must be a number, not 'soon'"),
        ("[timeouts]\ncall_s = 0\n", "f.toml:2: timeouts.call_s: must be more than 0"),
        ("[recovery]\nparallel = true\n", "f.toml:2: recovery.parallel: must be a whole number, not True"),
        ("[log]\nlevel = 'loud'\n", "f.toml:2: log.level: must be one of debug, info, warning, error"),
        ("root_dir = 'here'\n", "f.toml:1: root_dir: must be an absolute path"),
        (f"state_dir = '/{'x' * 60}'\n", "f.toml:1: state_dir: must be at most 40 bytes long"),
        ("log = 3\n", "f.toml:1: log: is a section"),
        ("[log\n", "f.toml: "),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, message: str) -> None:
    """File, line and key, and what would have been right."""
    with pytest.raises(ConfigError) as caught:
        configfile.parse(text, "f.toml")
    assert message in str(caught.value)


def test_a_missing_file_is_an_error_only_when_it_was_asked_for() -> None:
    """Without --config the daemon runs on defaults."""
    assert configfile.load("/nowhere/shimd.toml", may_be_missing=True) == Config()
    with pytest.raises(ConfigError, match="no such file"):
        configfile.load("/nowhere/shimd.toml")


def test_the_unit_never_kills_containers_with_the_daemon() -> None:
    """What the promise needs of systemd."""
    unit = service_text("/usr/bin/shimd", "/usr/bin/shimctl", Config())
    for line in ("Type=notify", "KillMode=process", "Delegate=yes", "OOMScoreAdjust=-999", "TasksMax=infinity"):
        assert f"\n{line}\n" in unit
    assert "\nExecStart=/usr/bin/shimd run\n" in unit


def test_the_unit_starts_what_was_asked_for() -> None:
    """The options that were given, in systemd's quoting; a file that is not named need not be there."""
    options = ("--config", "/etc/a b/%i$.toml", "--no-keeper")
    unit = service_text("/usr/bin/shimd", "/usr/bin/shimctl", Config(), options)
    assert '\nExecStart=/usr/bin/shimd run --config "/etc/a b/%%i$$.toml" --no-keeper\n' in unit


def test_the_unit_does_not_try_again_what_cannot_be_otherwise() -> None:
    """A bad configuration is told once, by its own exit code; anything else is tried for ever: no number of starts that
    Restart= can make reaches the limit.
    """
    unit = service_text("/usr/bin/shimd", "/usr/bin/shimctl", Config())
    for line in ("Restart=always", f"RestartPreventExitStatus={EXIT_CONFIG}"):
        assert f"\n{line}\n" in unit
    number = {name: int(value) for name, value in re.findall(r"^(StartLimit\w+|RestartSec)=(\d+)$", unit, re.MULTILINE)}
    starts = number["StartLimitIntervalSec"] // number["RestartSec"] + 1
    assert starts < number["StartLimitBurst"]


def test_the_units_keep_the_socket_while_no_daemon_is_there() -> None:
    """By the socket unit, which the service prefers; by the store of descriptors without it. A reload is an upgrade."""
    config = dataclasses.replace(Config(), socket=Socket(path="/run/shimd/s"))
    service = service_text("/usr/bin/shimd", "/usr/bin/shimctl", config)
    for line in ("Wants=shimd.socket", "FileDescriptorStoreMax=4", "Environment=SHIMD_FDSTORE=4", "NotifyAccess=main"):
        assert f"\n{line}\n" in service
    assert "\nExecReload=/usr/bin/shimctl --address /run/shimd/s daemon upgrade\n" in service
    assert "\nListenStream=/run/shimd/s\nSocketMode=0600\nDirectoryMode=0700\n" in socket_text(config)


def test_the_socket_unit_gives_the_socket_to_whom_the_configuration_says() -> None:
    """Owner and mode; a directory that is not ours is not made private."""
    text = socket_text(dataclasses.replace(Config(), socket=Socket(path="/run/x/s", mode=0o660, uid=1, gid=7)))
    assert "\nListenStream=/run/x/s\nSocketMode=0660\nSocketUser=1\nSocketGroup=7\nBacklog=1024\n" in text
