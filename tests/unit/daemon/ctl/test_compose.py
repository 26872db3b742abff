"""Every option of run and create, in what is sent to the daemon."""

import argparse
import json
import os
from typing import Any

import pytest

from daemon.ctl import compose, labels
from daemon.ctl.__main__ import command_parser
from daemon.ctl.commands import COMMANDS
from daemon.ctl.errors import CtlError, UsageError
from daemon.ctl.run import resolve_words
from daemon.spec_parse import SpecError
from ttrpc.api import runc


class Composed:
    """What a command line of `run` comes to: spec, stdio, record."""

    def __init__(self, *words: str, container_id: str = "web", root_dir: str = "/var/lib/shimd") -> None:
        args = parse(*words)
        named, command = resolve_words(args)
        self.args = args
        self.command = command
        self.id = named or container_id
        self.spec = compose.build_spec(args, self.id, command)
        self.stdio = compose.build_stdio(args, self.id, root_dir, terminal=self.spec["process"]["terminal"])
        self.record = compose.container_record(args, self.id, self.spec, self.stdio, "req")


def parse(*words: str, command: str = "run") -> argparse.Namespace:
    args = command_parser(command, COMMANDS[command].load()).parse_args(words, argparse.Namespace(namespace="default"))
    args.command = command
    return args


@pytest.fixture
def root(tmp_path: Any) -> str:
    folder = tmp_path / "root"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n")
    (folder / "etc/group").write_text("app:x:1001:\nwheel:x:10:app\n")
    return str(folder)


def of(spec: Any, path: str) -> Any:
    """A value by its dotted path; None when it is not there."""
    for part in path.split("."):
        if spec is None:
            return None
        spec = spec[int(part)] if isinstance(spec, list) else spec.get(part)
    return spec


SPEC_FLAGS = [
    (["-t"], "process.terminal", True),
    (["--tty"], "process.terminal", True),
    (["--cwd", "/srv"], "process.cwd", "/srv"),
    (["--workdir", "/srv"], "process.cwd", "/srv"),
    (["-w", "/srv"], "process.cwd", "/srv"),
    (["--user", "app"], "process.user", {"uid": 1000, "gid": 1001, "additionalGids": [10]}),
    (["-u", "5:6"], "process.user", {"uid": 5, "gid": 6}),
    (["--hostname", "box"], "hostname", "box"),
    (["--memory", "64m"], "linux.resources.memory", {"limit": 64 << 20}),
    (["-m", "64m", "--memory-swap", "-1"], "linux.resources.memory", {"limit": 64 << 20, "swap": -1}),
    (["--cpus", "1.5"], "linux.resources.cpu", {"quota": 150000, "period": 100000}),
    (["--cpu-shares", "512"], "linux.resources.cpu", {"shares": 512}),
    (["--cpuset-cpus", "0-1"], "linux.resources.cpu", {"cpus": "0-1"}),
    (["--pids-limit", "20"], "linux.resources.pids", {"limit": 20}),
    (["--pids-limit", "-1"], "linux.resources.pids", None),
    (["--read-only"], "root.readonly", True),
    (["--privileged"], "linux.maskedPaths", None),
    (["--privileged"], "linux.seccomp", None),
    (["--security-opt", "seccomp=unconfined"], "linux.seccomp", None),
    (["--security-opt", "no-new-privileges=false"], "process.noNewPrivileges", False),
    (["--security-opt", "no-new-privileges"], "process.noNewPrivileges", True),
    (["--oom-score-adj", "500"], "process.oomScoreAdj", 500),
    (["--ulimit", "nofile=10:20"], "process.rlimits", [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]),
    (["--annotation", "a=b"], "annotations", {"a": "b"}),
    (["--stop-signal", "USR1"], "annotations", {"org.opencontainers.image.stopSignal": "USR1"}),
]


@pytest.mark.parametrize(("flags", "path", "expected"), SPEC_FLAGS)
def test_an_option_becomes_its_part_of_the_spec(flags: list[str], path: str, expected: Any, root: str) -> None:
    assert expected == of(Composed("--rootfs", root, *flags, "--", "sh").spec, path)


def test_environment_comes_from_files_then_options(root: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\nA=file\nB=file\nOURS\n")
    monkeypatch.setenv("OURS", "taken")
    monkeypatch.setenv("C", "taken too")

    made = Composed("--rootfs", root, "--env-file", str(file), "--env", "A=option", "-e", "C", "--", "sh").spec

    assert made["process"]["env"][1:] == ["A=option", "B=file", "OURS=taken", "C=taken too"]


def test_a_wrong_env_file_is_named(root: str, tmp_path: Any) -> None:
    file = tmp_path / "env"
    file.write_text("A =x\n")

    with pytest.raises(SpecError, match=f"{file}: line 1"):
        Composed("--rootfs", root, "--env-file", str(file), "--", "sh")


def test_mounts_and_volumes(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    made = Composed(
        *("--rootfs", root, "--mount", "type=tmpfs,dst=/t", "--mount", "type=bind,src=/etc,dst=/e,ro"),
        *("-v", "./lib:/l", "--volume", "/usr:/u:ro", "--", "sh"),
    ).spec

    mounts = {mount["destination"]: mount for mount in made["mounts"]}
    assert mounts["/t"]["type"] == "tmpfs"
    assert "ro" in mounts["/e"]["options"]
    assert mounts["/l"]["source"] == "/usr/lib"
    assert "ro" in mounts["/u"]["options"]


def test_capabilities(root: str) -> None:
    dropped = Composed("--rootfs", root, "--cap-drop", "ALL", "--cap-add", "kill", "--", "sh").spec

    assert of(dropped, "process.capabilities.bounding") == ["CAP_KILL"]


def test_network_modes(root: str) -> None:
    def kinds(*flags: str) -> list[str]:
        return [each["type"] for each in Composed("--rootfs", root, *flags, "--", "sh").spec["linux"]["namespaces"]]

    assert "network" in kinds()
    assert "network" in kinds("--net", "none")
    assert "network" not in kinds("--net", "host")


def test_a_seccomp_profile_of_ones_own(root: str, tmp_path: Any) -> None:
    file = tmp_path / "seccomp.json"
    file.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')

    made = Composed("--rootfs", root, "--security-opt", f"seccomp={file}", "--", "sh").spec

    assert of(made, "linux.seccomp") == {"defaultAction": "SCMP_ACT_ALLOW"}


RECORD_FLAGS = [
    (["--label", "team=web", "-l", "x"], {"team": "web", "x": ""}),
    (["--stop-signal", "QUIT"], {labels.STOP_SIGNAL: "QUIT"}),
    (["--restart", "on-failure:3"], {labels.RESTART_POLICY: "on-failure:3", labels.RESTART_STATUS: "running"}),
    (["--rm"], {labels.AUTO_REMOVE: "client"}),
    (["--rm", "-d"], {labels.AUTO_REMOVE: "true"}),
]


@pytest.mark.parametrize(("flags", "expected"), RECORD_FLAGS)
def test_an_option_becomes_a_label_of_the_record(flags: list[str], expected: dict[str, str], root: str) -> None:
    made = dict(Composed("--rootfs", root, *flags, "--", "sh").record.labels)

    assert expected.items() <= made.items()
    assert made[labels.REQUEST] == "req"


def test_the_log_is_part_of_the_restart_policy(root: str) -> None:
    """As containerd's restart monitor expects it, so that a restarted task goes on with the same log."""
    made = Composed("--rootfs", root, "--restart", "always", "--", "sh")

    assert made.stdio.stdout == made.record.labels[labels.RESTART_LOG_URI]


LOG = "log:///var/lib/shimd/logs/default/web/container.log"
STDIO_FLAGS = [
    ([], ("", f"{LOG}?format=json", f"{LOG}?format=json", False)),
    (["-i"], ("attach:", f"{LOG}?format=json", f"{LOG}?format=json", False)),
    (["--interactive", "-t"], ("attach:", f"{LOG}?format=json", "", True)),
    (["--log-driver", "json-file"], ("", f"{LOG}?format=json", f"{LOG}?format=json", False)),
    (["--log-driver", "raw"], ("", f"{LOG}?format=raw", f"{LOG}?format=raw", False)),
    (["--log-driver", "none"], ("", "attach:", "attach:", False)),
    (
        ["--log-opt", "max-size=1m", "--log-opt", "max-file=2"],
        (
            "",
            f"{LOG}?format=json&max-size=1048576&max-files=2",
            f"{LOG}?format=json&max-size=1048576&max-files=2",
            False,
        ),
    ),
]


@pytest.mark.parametrize(("flags", "expected"), STDIO_FLAGS)
def test_an_option_becomes_a_stream(flags: list[str], expected: tuple[str, str, str, bool], root: str) -> None:
    made = Composed("--rootfs", root, *flags, "--", "sh")
    request = compose.task_request("web", made.stdio)

    assert expected == (request.stdin, request.stdout, request.stderr, request.terminal)
    again = labels.stdio_of(made.record.labels)
    assert again is not None
    assert expected == (again.stdin, again.stdout, again.stderr, again.terminal)


def test_a_path_with_odd_characters_survives_the_uri(root: str) -> None:
    made = Composed("--rootfs", root, "--", "sh", root_dir="/var/lib/a b?c")

    assert made.stdio.stdout.startswith("log:///var/lib/a%20b%3Fc/logs/")
    assert made.stdio.log_path == "/var/lib/a b?c/logs/default/web/container.log"


def test_runtimes() -> None:
    """A containerd runtime by name; a runc-compatible program by name or path, run by our shim."""

    def program(text: str) -> str:
        return runc.Options.FromString(compose.runtime_of(text).options.value).binary_name

    assert compose.runtime_of(None).name == compose.DEFAULT_RUNTIME
    assert compose.runtime_of("io.containerd.runc.v2").name == "io.containerd.runc.v2"
    assert compose.runtime_of("crun").name == compose.DEFAULT_RUNTIME
    assert program("crun") == "crun"
    assert program("/usr/bin/crun") == "/usr/bin/crun"
    assert program("./crun") == os.path.abspath("crun")


def test_the_record_carries_the_spec_as_containerd_writes_it(root: str) -> None:
    made = Composed("--rootfs", root, "--runtime", "crun", "--name", "named", "sh", "-c", "exit")

    assert made.record.id == "named"
    assert made.record.spec.type_url == "types.containerd.io/opencontainers/runtime-spec/1/Spec"
    assert json.loads(made.record.spec.value)["process"]["args"] == ["sh", "-c", "exit"]
    assert made.record.runtime.options.type_url == "containerd.runc.v1.Options"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--", "sh"], "say what to run it on"),
        (["--rootfs", "/", "--bundle", "/b", "--", "sh"], "do not go together"),
        (["--rootfs", "/nowhere", "--", "sh"], "no such directory"),
        (["--rootfs", "/", "--rm", "--restart", "always", "--", "sh"], "--restart and --rm"),
        (["--rootfs", "/", "--log-driver", "none", "--log-opt", "max-size=1m", "--", "sh"], "nothing to act on"),
        (["--rootfs", "/", "--security-opt", "apparmor=x", "--", "sh"], "not known"),
        (["--rootfs", "/", "--oom-score-adj", "2000", "--", "sh"], "between"),
        (["--rootfs", "/", "--stop-signal", "NONE", "--", "sh"], "not known"),
        (["--rootfs", "/", "--memory", "4m", "--", "sh"], "the least is 6m"),
        (["--rootfs", "/", "--name", "a", "b", "-d"], "b"),
    ],
)
def test_what_cannot_be_is_refused_before_anybody_is_asked(words: list[str], says: str) -> None:
    if says == "b":
        assert Composed(*words).command == ["b", "-d"]
        return
    with pytest.raises((UsageError, CtlError, SpecError), match=says):
        Composed(*words)


# --- bundles


@pytest.fixture
def bundle(tmp_path: Any, root: str) -> str:
    made = Composed("--rootfs", root, "--hostname", "original", "--", "sleep", "1").spec
    made["root"]["path"] = "root"
    made["mounts"].append({"destination": "/data", "type": "bind", "source": "data", "options": ["rbind"]})
    del made["linux"]["cgroupsPath"]
    (tmp_path / "config.json").write_text(json.dumps(made))
    return str(tmp_path)


def test_a_bundle_is_taken_as_it_is_with_its_paths_made_absolute(bundle: str) -> None:
    made = Composed("--bundle", bundle, "web").spec

    assert made["root"]["path"] == f"{bundle}/root"
    assert made["mounts"][-1]["source"] == f"{bundle}/data"
    assert made["hostname"] == "original"
    assert made["process"]["args"] == ["sleep", "1"]
    assert made["linux"]["cgroupsPath"] == "/default/web"


def test_some_options_add_to_a_bundle(bundle: str) -> None:
    made = Composed(
        *("--bundle", bundle, "-t", "-e", "X=1", "--hostname", "new", "--cwd", "/tmp", "--annotation", "a=b"),
        *("web", "--", "id"),
    ).spec

    assert made["process"]["args"] == ["id"]
    assert made["process"]["terminal"] is True
    assert "X=1" in made["process"]["env"]
    assert (made["hostname"], made["process"]["cwd"], made["annotations"]) == ("new", "/tmp", {"a": "b"})


def test_an_option_a_bundle_decides_is_refused(bundle: str) -> None:
    with pytest.raises(UsageError, match="--memory does not go with --bundle"):
        Composed("--bundle", bundle, "--memory", "1g", "web")


def test_a_wrong_bundle_is_told_with_the_place(bundle: str) -> None:
    with open(f"{bundle}/config.json") as file:
        made = json.load(file)
    made["process"]["cwd"] = "relative"
    with open(f"{bundle}/config.json", "w") as file:
        json.dump(made, file)

    with pytest.raises(CtlError, match=r"process\.cwd"):
        Composed("--bundle", bundle, "web")
    with pytest.raises(CtlError, match="no such file"):
        Composed("--bundle", "/nowhere", "web")


# --- the table of options


def test_every_option_of_run_is_held_by_a_test() -> None:
    """Here, or (what concerns us and not the container) by the system tests named beside it."""
    with open(__file__, encoding="utf-8") as file:
        here = file.read()
    elsewhere = {"--detach": "test_ctl_run", "--rm": "test_ctl_run", "--detach-keys": "test_ctl_terminal", "--help": ""}
    parser = command_parser("run", COMMANDS["run"].load())
    everywhere = {"--address", "--namespace", "--state", "--reconnect"}

    long_options = {
        option for action in parser._actions for option in action.option_strings if option.startswith("--")
    } - everywhere

    assert {option for option in long_options if f'"{option}"' not in here and option not in elsewhere} == set()


def test_made_up_names_are_readable_and_differ() -> None:
    names = {compose.made_up_id() for _ in range(50)}

    assert len(names) > 45
    assert all(len(name.split("-")) == 3 for name in names)
    assert compose.made_up_exec_id() != compose.made_up_exec_id()
