"""What holds for every test: a time limit, nothing left behind, async tests under trio, words for what is missing."""

import faulthandler
import functools
import inspect
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import pytest
import trio
import trio.testing

from daemon.ctl.doctor import connector
from tests.support import leaks, workers

REAL_TIERS = ("kernel", "system", "interop")  # folders whose tests run real containers
LIGHT_TIERS = ("unit", "house")  # folders whose tests start nothing: only this process is looked at
APART = "shimd-workers"
SOFT_SHARE = 0.9  # of pytest-timeout's limit, which ends the whole run: ours fails the one test

session_key = pytest.StashKey[leaks.Session]()
final_leaks_key = pytest.StashKey[str]()
interrupted_key = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    # A shell ignores SIGINT for what it starts in the background, and children inherit that: Ctrl-C tests would hang.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.register_profile("untimed", deadline=None)  # no test is about how fast the machine is
    hypothesis.settings.load_profile("untimed")
    leaks.sweep_stale()
    session = leaks.begin()
    config.stash[session_key] = session
    os.environ.setdefault("SHIMD_RELIEF_S", "off")  # another process: tests of it ask for that
    os.environ.setdefault("SHIMD_KEEPER", "off")  # it outlives its test by design: tests of it ask for one
    if config.option.basetemp is None or workers.is_worker(config):
        config.option.basetemp = os.path.join(session.folder, "p")
    if workers.is_controller(config):
        leaks.unmark(session)  # its workers begin sessions of their own
        config.pluginmanager.register(workers.Apart(), APART)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if tier_of(item) in REAL_TIERS:
            item.add_marker(pytest.mark.root)


def pytest_unconfigure(config: pytest.Config) -> None:
    session = config.stash.get(session_key, None)
    if session is not None:
        shutil.rmtree(session.folder, ignore_errors=True)


def tier_of(item: pytest.Item) -> str:
    parts = item.path.parts
    return parts[parts.index("tests") + 1] if "tests" in parts else ""


# --- what a test needs ------------------------------------------------------------------------------------------------


@functools.cache
def missing_for_containers() -> tuple[str, ...]:
    """What this machine lacks to run containers, in words."""
    missing = []
    if shutil.which("runc") is None:
        missing.append("runc (apt-get install runc)")
    if shutil.which("busybox") is None:
        missing.append("busybox (apt-get install busybox-static)")
    if not leaks.cgroup_roots():
        missing.append("mounted cgroups (/sys/fs/cgroup)")
    return tuple(missing)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") is None:
        return
    if os.geteuid() != 0:
        pytest.skip("needs root: run `sudo make test`")
    if missing_for_containers():
        pytest.fail(f"this machine lacks {', '.join(missing_for_containers())}; `make dev` installs it", pytrace=False)
    if item.get_closest_marker("init_pid_ns") is not None and (why := connector.refusal()):
        pytest.skip(f"no process connector (a worker of -n never has it): {why}")


# --- nothing is left behind -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves a process, mount, cgroup, namespace, file or descriptor, and remove what it left."""
    session = request.config.stash[session_key]
    is_deep = tier_of(request.node) not in LIGHT_TIERS
    before = leaks.look(session, deep=is_deep)
    yield
    if request.config.stash.get(interrupted_key, False):
        return  # a person's Ctrl-C: the test was left where it stood, and the last sweep takes what it has
    found = leaks.check(session, before, deep=is_deep)
    if found:
        leaks.remove(session, before, found, deep=is_deep)
        pytest.fail(f"left behind:\n{found}", pytrace=False)


@pytest.fixture
def short_dir() -> Iterator[str]:
    """A private folder with a short path, for unix sockets (107 bytes at most); removed afterwards."""
    path = tempfile.mkdtemp(prefix="t")
    yield path
    shutil.rmtree(path)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The last sweep: what a fixture of wider scope left, and what no check could see at its time."""
    ours = session.config.stash.get(session_key, None)
    if ours is None:
        return
    found = str(leaks.end(ours))
    if workers.is_worker(session.config):
        session.config.workeroutput[workers.LEFT] = found  # type: ignore[attr-defined]
        return
    apart = session.config.pluginmanager.get_plugin(APART)
    left = [found, *(apart.left if isinstance(apart, workers.Apart) else [])]
    told = session.config.stash[final_leaks_key] = "\n".join(filter(None, left))
    if told and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash.get(final_leaks_key, None)
    if found:
        terminalreporter.section("left behind by the whole run, now removed", red=True)
        terminalreporter.line(found)


# --- a limit for each test --------------------------------------------------------------------------------------------


class OverTime(BaseException):
    """The running test used up its time. Not an Exception, so that no test catches it by accident."""


class Alarm:
    """The running test's limit, and whether it rang."""

    limit_s = 0.0
    has_rung = False


def limit_of(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    value = marker.args[0] if marker is not None and marker.args else item.config.getini("timeout")
    return float(value or 0) * SOFT_SHARE


def ring(signum: int, frame: object) -> None:
    """End the test where it stands. Under trio by way of SIGINT, which trio turns into a clean unwind of its tasks."""
    Alarm.has_rung = True
    faulthandler.dump_traceback(file=sys.__stderr__)
    if trio.lowlevel.in_trio_run():
        signal.raise_signal(signal.SIGINT)
    else:
        raise OverTime


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    Alarm.limit_s, Alarm.has_rung = limit_of(item), False
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, Alarm.limit_s)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fail_when_overtime(item: pytest.Item) -> Generator[None, object, object]:
    """Turn what `ring` raised into a failure of this test; a person's Ctrl-C stays what it is."""
    try:
        return (yield)
    except (OverTime, KeyboardInterrupt):
        if not Alarm.has_rung:
            item.config.stash[interrupted_key] = True
            raise
        Alarm.has_rung = False
        pytest.fail(f"not done after {Alarm.limit_s:g} s; the stacks are on stderr")


@pytest.hookimpl(wrapper=True, specname="pytest_runtest_setup")
def pytest_runtest_setup_in_time(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from fail_when_overtime(item))


@pytest.hookimpl(wrapper=True, specname="pytest_runtest_call")
def pytest_runtest_call_in_time(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from fail_when_overtime(item))


@pytest.hookimpl(wrapper=True, specname="pytest_runtest_teardown")
def pytest_runtest_teardown_in_time(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from fail_when_overtime(item))


# --- async tests ------------------------------------------------------------------------------------------------------


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """A clock that jumps to the next deadline when everybody waits; the test's trio run uses it."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test in trio."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    clock = arguments.get("autojump_clock")
    trio.run(functools.partial(pyfuncitem.obj, **arguments), clock=clock)
    return True
