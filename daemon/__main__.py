"""`shimd`: the command line of the daemon, and the only reader of its arguments."""

import argparse
import dataclasses
import gc
import os
import sys
from collections.abc import Sequence

from daemon import configfile, faults, log, unit
from daemon.config import DEFAULT_PATH, Config
from daemon.configfile import ConfigError
from daemon.notify import Notifier
from daemon.version import VERSION

EXIT_USAGE = 2
EXIT_FAILED = 1
# What cannot be otherwise at the next try; the unit does not try then. Source: EX_CONFIG of sysexits.h.
EXIT_CONFIG = 78


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
    except ConfigError as error:
        return _fail(str(error)) if arguments.command is not _run else _fail_start(str(error), EXIT_CONFIG)
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    options.add_argument("--config", metavar="FILE", help=f"configuration (default: {DEFAULT_PATH} if it is there)")
    options.add_argument("--root", metavar="DIR", help="what survives a reboot: store, logs (default: /var/lib/shimd)")
    options.add_argument("--state", metavar="DIR", help="sockets and bundles (default: /run/shimd)")
    options.add_argument("--address", metavar="SOCKET", help="where clients connect (default: STATE/shimd.sock.ttrpc)")
    options.add_argument("--no-keeper", action="store_true", help="start no keeper; shims start by themselves")
    options.add_argument(
        "--check",
        nargs="?",
        const="text",
        choices=("text", "json"),
        help="say whether this program can serve with this configuration and store, touch nothing, end",
    )
    options.add_argument("--log-level", choices=log.LEVELS, help="default: info")
    options.add_argument("--log-format", choices=("text", "json"), help="default: text")
    parser = argparse.ArgumentParser(
        prog="shimd",
        parents=[options],
        description="The container supervisor. It keeps records and arranges; each container runs under a shim of its\n"
        "own. Stopping, killing or upgrading shimd leaves containers, their output and their exits alone.",
        epilog="Signals: SIGTERM and SIGINT stop the daemon only.\n"
        "Talk to it with shimctl. `shimd config default` explains every setting.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=_run)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    run = commands.add_parser("run", parents=[options], help="run the daemon (what happens without a command, too)")
    run.set_defaults(command=_run)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(command=_version)
    config = commands.add_parser("config", help="print the default configuration, check one, print a systemd unit")
    actions = config.add_subparsers(title="actions", metavar="ACTION", required=True)
    default = actions.add_parser("default", help="print the commented default configuration")
    default.set_defaults(command=_config_default)
    check = actions.add_parser("check", help="read a configuration as the daemon would and say what is wrong with it")
    check.add_argument("file", metavar="FILE")
    check.set_defaults(command=_config_check)
    systemd = actions.add_parser("unit", parents=[options], help="print the systemd units for this installation")
    systemd.add_argument("which", nargs="?", choices=("service", "socket"), help="one of the two (default: both)")
    systemd.set_defaults(command=_config_unit)
    return parser


def _version(_arguments: argparse.Namespace) -> int:
    _say(f"shimd {VERSION}")
    return 0


def _config_default(_arguments: argparse.Namespace) -> int:
    _say(configfile.default_text(), end="")
    return 0


def _config_check(arguments: argparse.Namespace) -> int:
    configfile.load(arguments.file)
    _say(f"{arguments.file}: ok")
    return 0


def _config_unit(arguments: argparse.Namespace) -> int:
    config = _configured(arguments)
    program = os.path.abspath(sys.argv[0])
    ctl = os.path.join(os.path.dirname(program), "shimctl")
    texts = {
        "service": unit.service_text(program, ctl, config, _options_given(arguments)),
        "socket": unit.socket_text(config),
    }
    _say("\n".join(texts.values()) if arguments.which is None else texts[arguments.which], end="")
    return 0


def _options_given(arguments: argparse.Namespace) -> list[str]:
    """The options that this command was given and that `run` is to have as well; paths absolute."""
    given = vars(arguments)
    options: list[str] = []
    for name in ("config", "root", "state", "address"):
        if name in given:
            options += (f"--{name}", os.path.abspath(given[name].removeprefix("unix://")))
    for name in ("log_level", "log_format"):
        if name in given:
            options += (f"--{name.replace('_', '-')}", given[name])
    return [*options, "--no-keeper"] if "no_keeper" in given else options


def _run(arguments: argparse.Namespace) -> int:
    config = _configured(arguments)
    if "check" in arguments:
        return _check(config, as_json=arguments.check == "json")
    log.set_up(config.log.level, config.log.format, os.environ)
    try:
        faults.arm(os.environ)
    except faults.UnknownFault as error:
        return _fail_start(str(error), EXIT_CONFIG)
    # Late: `shimd config` and `shimd version` need none of it. What is imported stays: a collector finds nothing in it.
    gc.disable()
    from daemon import app
    from daemon.lock import AlreadyRunning
    from daemon.predecessor import NotTakenOver
    from daemon.server import SocketTaken
    from daemon.store.schema import NewerSchema
    from ttrpc.errors import StatusError

    gc.freeze()
    gc.enable()
    try:
        app.run(config, os.environ)
    except AlreadyRunning as error:
        return 0 if app.is_told_of(error.holder, os.environ) else _fail_start(str(error))
    except NewerSchema as error:
        return _fail_start(str(error), EXIT_CONFIG)
    except (NotTakenOver, SocketTaken, StatusError) as error:
        return _fail_start(str(error))
    except OSError as error:
        return _fail_start(f"{error.filename or 'start'}: {error.strerror or error}")
    return 0


def _check(config: Config, *, as_json: bool) -> int:
    from daemon import check
    from daemon.store.schema import NewerSchema
    from ttrpc.errors import StatusError

    try:
        _say(check.report(config, as_json=as_json))
    except (NewerSchema, StatusError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'check'}: {error.strerror or error}")
    return 0


def _configured(arguments: argparse.Namespace) -> Config:
    """The file's values, with what the command line says instead."""
    given = vars(arguments)
    path = given.get("config", DEFAULT_PATH)
    config = configfile.load(path, may_be_missing="config" not in given)
    if "root" in given:
        config = dataclasses.replace(config, root_dir=os.path.abspath(given["root"]))
    if "state" in given:
        config = dataclasses.replace(config, state_dir=os.path.abspath(given["state"]))
    if "address" in given:
        path = os.path.abspath(given["address"].removeprefix("unix://"))
        config = dataclasses.replace(config, socket=dataclasses.replace(config.socket, path=path))
    if "no_keeper" in given:
        config = dataclasses.replace(config, keeper=dataclasses.replace(config.keeper, enabled=False))
    if "log_level" in given:
        config = dataclasses.replace(config, log=dataclasses.replace(config.log, level=given["log_level"]))
    if "log_format" in given:
        config = dataclasses.replace(config, log=dataclasses.replace(config.log, format=given["log_format"]))
    return configfile.checked(config)


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)


def _fail(message: str, code: int = EXIT_FAILED) -> int:
    sys.stderr.write(f"{log.journal_prefix('error', os.environ)}shimd: {message}\n")
    return code


def _fail_start(message: str, code: int = EXIT_FAILED) -> int:
    """The same of a daemon that did not start; its supervisor shows the reason beside the unit's state."""
    Notifier(os.environ).tell(STATUS=f"did not start: {message}".replace("\n", " "))
    return _fail(message, code)


if __name__ == "__main__":
    sys.exit(main())
