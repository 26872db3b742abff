"""What the two processes of an upgrade say to each other, with a script in the other one's place."""

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

from daemon import app
from daemon.config import Config
from daemon.handover import (
    FD_VARIABLE,
    MAX_FDS,
    PROTOCOL,
    Channel,
    Gone,
    Misunderstood,
    Seat,
    inherited_channel,
    receive_kept,
    send_kept,
)
from daemon.lock import AlreadyRunning, DirectoryLock
from daemon.notify import Notifier
from daemon.predecessor import NotTakenOver, Predecessor
from daemon.successor import Successor
from ttrpc.aio import KeptConnection
from ttrpc.api import shimd
from ttrpc.errors import StatusError

DEADLINE_S = 20.0


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = (Channel(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    yield ours, theirs
    for end in (ours, theirs):
        end.sock.close()


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# --- the channel


async def test_a_record_arrives_with_its_descriptors(ends: tuple[Channel, Channel]) -> None:
    read_fd, write_fd = os.pipe()
    await ends[0].send("hello", [write_fd], protocol=1)
    message, (got,) = await ends[1].receive("hello")
    os.write(got, b"through")

    assert message == {"word": "hello", "protocol": 1}
    assert os.read(read_fd, 99) == b"through"
    assert not os.get_inheritable(got)
    for fd in (read_fd, write_fd, got):
        os.close(fd)


@pytest.mark.parametrize("data", [b"x", b"[]", b"{}", b'{"word": "serving"}', b"\xff"])
async def test_another_word_is_not_understood_and_what_came_with_it_is_closed(
    ends: tuple[Channel, Channel], data: bytes
) -> None:
    before = open_fds()
    socket.send_fds(ends[0].sock, [data], [0, 1])

    with pytest.raises(Misunderstood, match="expected ready or refused"):
        await ends[1].receive("ready", "refused")
    assert open_fds() == before


async def test_the_end_of_the_other_is_told_to_who_reads_and_who_writes(ends: tuple[Channel, Channel]) -> None:
    ends[0].close()
    ends[0].close()
    with pytest.raises(Gone):
        await ends[1].receive("hello")
    with pytest.raises(Gone):
        await ends[1].send("ready")


async def test_more_connections_than_one_record_has_room_for(ends: tuple[Channel, Channel]) -> None:
    """Each comes with its own descriptor, and half a frame that was read already."""
    files = [os.memfd_create(f"c{number}") for number in range(MAX_FDS + 7)]
    kept = [KeptConnection(fd, number, b"half", 0, b"unsent", ()) for number, fd in enumerate(files)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: send_kept(ends[0], kept, closed_at_ns=5))
        take, got = await receive_kept(ends[1])

    assert take["closed_at_ns"] == 5
    assert [one._replace(fd=0) for one in got] == [one._replace(fd=0) for one in kept]
    assert [os.fstat(one.fd).st_ino for one in got] == [os.fstat(fd).st_ino for fd in files]
    for fd in (*files, *(one.fd for one in got)):
        os.close(fd)


@pytest.mark.parametrize("states", [[{"last_id": 1}], {"no": "list"}, [7]])
async def test_connections_that_cannot_be_read_are_closed(ends: tuple[Channel, Channel], states: object) -> None:
    before = open_fds()
    memfd, one = os.memfd_create("states"), os.memfd_create("c")
    os.write(memfd, json.dumps(states).encode())
    await ends[0].send("take", [memfd])
    await ends[0].send("connections", [one])

    with pytest.raises(Misunderstood):
        await receive_kept(ends[1])
    os.close(memfd)
    os.close(one)
    assert open_fds() == before


def test_the_end_we_inherit_is_inherited_by_nobody_else() -> None:
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    channel = inherited_channel({FD_VARIABLE: str(theirs.detach())})

    assert channel is not None
    assert not channel.sock.get_inheritable()
    assert inherited_channel({}) is None
    assert inherited_channel({FD_VARIABLE: "x"}) is None
    channel.sock.close()
    ours.close()


# --- the new process's side


def hello(lock: DirectoryLock, **changes: Any) -> dict[str, Any]:
    record = shimd.UpgradeRecord(id="u1").SerializeToString().hex()
    return {"protocol": PROTOCOL, "locks": [lock.path], "listeners": [(True, False)], "record": record, **changes}


@pytest.fixture
def place(tmp_path: os.PathLike[str]) -> Iterator[tuple[Config, DirectoryLock, socket.socket]]:
    """A directory that is a daemon's, and that daemon's listening socket."""
    directory = os.fspath(tmp_path)
    lock, listener = DirectoryLock(directory), socket.socket(socket.AF_UNIX)
    yield Config(state_dir=directory, root_dir=directory), lock, listener
    listener.close()
    lock.release()


async def test_the_place_is_taken_word_by_word(
    ends: tuple[Channel, Channel], place: tuple[Config, DirectoryLock, socket.socket]
) -> None:
    config, lock, listener = place
    old, new = ends
    predecessor = Predecessor(new)
    with trio.fail_after(DEADLINE_S):
        await old.send("hello", [lock.fd, listener.fileno()], **hello(lock))
        seats: list[Seat] = []
        async with trio.open_nursery() as nursery:

            async def meet() -> None:
                seats.append(await predecessor.meet(config))

            nursery.start_soon(meet)
            ready, _ = await old.receive("ready")
            assert ready["pid"] == os.getpid()
            assert seats == []
            await send_kept(old, [], closed_at_ns=1)
        (seat,) = seats
        await old.send("commit")
        await predecessor.confirm(seat)
        await old.receive("loaded")
        await predecessor.finish()
        serving, _ = await old.receive("serving")

    assert (seat.record is predecessor.record, predecessor.record.id, predecessor.record.done) == (True, "u1", True)
    assert serving["gap_ns"] == predecessor.record.gap_ns > 0
    with pytest.raises(AlreadyRunning) as refused:
        DirectoryLock(config.state_dir)  # held by both
    assert refused.value.holder == os.getpid()
    seat.release(is_given=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": PROTOCOL + 1}, "protocol"),
        ({"locks": []}, "2 descriptors for 0 locks and 1 listeners"),
        ({"locks": [], "listeners": [(True, False)] * 2}, "does not own"),
        ({"record": "no hex"}, "hex"),
    ],
)
async def test_a_daemon_it_cannot_follow_is_told_why(
    ends: tuple[Channel, Channel],
    place: tuple[Config, DirectoryLock, socket.socket],
    changes: dict[str, Any],
    reason: str,
) -> None:
    config, lock, listener = place
    before = open_fds()
    await ends[0].send("hello", [lock.fd, listener.fileno()], **hello(lock, **changes))

    with pytest.raises(NotTakenOver, match=reason):
        await Predecessor(ends[1]).meet(config)
    said, _ = await ends[0].receive("refused")
    assert reason in said["reason"]
    assert open_fds() == before


@pytest.mark.parametrize("is_ready", [False, True])
async def test_when_the_old_one_dies_the_new_one_goes_on_in_its_place(
    ends: tuple[Channel, Channel], place: tuple[Config, DirectoryLock, socket.socket], is_ready: bool
) -> None:
    """To give up, the old one would have ended it first; only one that was not ready yet has nothing to go on with."""
    config, lock, listener = place
    before = open_fds()
    await ends[0].send("hello", [lock.fd, listener.fileno()], **hello(lock))
    predecessor = Predecessor(ends[1])
    if not is_ready:
        ends[0].close()
        with trio.fail_after(DEADLINE_S), pytest.raises(NotTakenOver, match="is gone"):
            await predecessor.meet(config)
        assert len(open_fds()) == len(before) - 1
        return
    async with trio.open_nursery() as nursery:

        async def die() -> None:
            await ends[0].receive("ready")
            ends[0].close()

        nursery.start_soon(die)
        with trio.fail_after(DEADLINE_S):
            seat = await predecessor.meet(config)
    await predecessor.confirm(seat)
    await predecessor.finish()

    assert seat.kept == []
    assert [lock.is_of(config.state_dir) for lock in seat.locks] == [True]
    assert predecessor.record.done
    seat.release(is_given=True)


# --- the old process's side


class Program:
    """A program in the making: what the old daemon can do to its process, and see of it."""

    pid = 4321

    def __init__(self) -> None:
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9

    def wait(self) -> int | None:
        return self.returncode


@pytest.fixture
def notified(short_dir: str) -> Iterator[tuple[Notifier, socket.socket]]:
    """A supervisor, and what tells it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"{short_dir}/n")
        heard.setblocking(False)
        yield Notifier({"NOTIFY_SOCKET": f"{short_dir}/n"}), heard


def successor(channel: Channel) -> tuple[Successor, Program]:
    program = Program()
    record = shimd.UpgradeRecord(id="u1")
    return Successor(program, channel, record), program  # type: ignore[arg-type]


async def test_a_program_that_serves_gets_everything_in_its_order(
    ends: tuple[Channel, Channel], notified: tuple[Notifier, socket.socket]
) -> None:
    """Our copies of the connections are closed before it may read from them; the supervisor is told once it serves."""
    old, program = successor(ends[0])
    ours, peer = socket.socketpair()
    seat = Seat([], [], [KeptConnection(ours.detach(), 1, b"", 0, b"", ())])
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(old.meet, seat, DEADLINE_S)
            said, _ = await ends[1].receive("hello")
            assert (said["protocol"], said["locks"]) == (PROTOCOL, [])
            await ends[1].send("ready", version="9.9")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(old.give, seat, notified[0], DEADLINE_S)
            _, (kept,) = await receive_kept(ends[1])
            assert len(seat.kept) == 1
            await ends[1].send("loaded")
            await ends[1].receive("commit")
            assert seat.kept == []
            with pytest.raises(BlockingIOError):
                notified[1].recv(99)
            await ends[1].send("serving", gap_ns=17)

    assert notified[1].recv(99) == b"MAINPID=4321"
    assert (old.record.done, old.record.gap_ns, old.record.to_version) == (True, 17, "9.9")
    assert program.returncode is None
    kept.close()
    assert peer.recv(1) == b""
    peer.close()


@pytest.mark.parametrize("word", ["take", "loaded", "commit"])
async def test_a_program_that_dies_in_the_hand_over_leaves_the_place_to_the_old_one(
    ends: tuple[Channel, Channel], notified: tuple[Notifier, socket.socket], word: str
) -> None:
    """It is ended, and the supervisor has heard nothing; connections are ours until somebody may read them."""
    old, program = successor(ends[0])
    ours, peer = socket.socketpair()
    seat = Seat([], [], [KeptConnection(ours.detach(), 1, b"", 0, b"", ())])

    async def die() -> None:
        _, (kept,) = await receive_kept(ends[1])
        kept.close()
        if word != "take":
            await ends[1].send("loaded")
        if word == "commit":
            await ends[1].receive("commit")
        program.returncode = -11
        ends[1].close()

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(die)
            with pytest.raises(StatusError, match=r"the new program died: signal SIGSEGV"):
                await old.give(seat, notified[0], DEADLINE_S)

    assert len(seat.kept) == (1 if word == "take" else 0)
    with pytest.raises(BlockingIOError):
        notified[1].recv(99)
    assert old.failed(StatusError(9, "why")).reason == "why"
    seat.close_kept()
    peer.close()


async def test_a_program_that_says_nothing_is_ended_in_time(
    ends: tuple[Channel, Channel], notified: tuple[Notifier, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    old, program = successor(ends[0])
    with pytest.raises(StatusError, match="was not ready within 5 s"):
        await old.meet(Seat([], []), 5.0)
    with pytest.raises(StatusError, match="did not serve within 5 s"):
        await old.give(Seat([], []), notified[0], 5.0)

    assert program.returncode == -9


async def test_a_program_that_refuses_is_quoted(ends: tuple[Channel, Channel]) -> None:
    old, _ = successor(ends[0])
    await ends[1].send("refused", reason="another schema")
    with trio.fail_after(DEADLINE_S), pytest.raises(StatusError, match="the new program refuses: another schema"):
        await old.meet(Seat([], []), DEADLINE_S)


async def test_a_new_daemon_is_silent_until_the_old_one_has_named_it(
    ends: tuple[Channel, Channel], notified: tuple[Notifier, socket.socket]
) -> None:
    """Who is not the main process yet is not listened to; afterwards the last of each state is told, once."""
    notifier, heard = notified
    notifier.hold()
    predecessor = Predecessor(ends[1])
    await predecessor.finish()
    notifier.tell(READY=1, STATUS="recovering")
    notifier.tell(STATUS="serving")
    with pytest.raises(BlockingIOError):
        heard.recv(99)
    ends[0].close()
    with trio.fail_after(DEADLINE_S):
        await predecessor.wait_told()
    notifier.release()
    notifier.release()
    assert heard.recv(99) == b"READY=1\nSTATUS=serving"
    with pytest.raises(BlockingIOError):
        heard.recv(99)
    notifier.tell(WATCHDOG=1)
    assert heard.recv(99) == b"WATCHDOG=1"


# --- a start that finds the daemon of its unit running


@pytest.mark.parametrize(
    ("own", "its", "is_supervised", "is_told"),
    [
        ("/system.slice/shimd.service", "/system.slice/shimd.service", True, True),
        ("/system.slice/shimd.service", "/system.slice/other.service", True, False),
        ("/system.slice/shimd.service", "/system.slice/shimd.service", False, False),
        ("/user.slice/a.scope", "/user.slice/a.scope", True, False),
        (None, None, True, False),
    ],
)
def test_a_start_of_the_unit_names_the_successor_that_holds_its_place(
    short_dir: str,
    monkeypatch: pytest.MonkeyPatch,
    own: str | None,
    its: str | None,
    is_supervised: bool,
    is_told: bool,
) -> None:
    """The main process died in the middle of an upgrade: systemd starts another, which finds the place taken."""
    monkeypatch.setattr(app.procfs, "cgroup_of", lambda pid: own if pid == os.getpid() else its)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"{short_dir}/n")
        heard.setblocking(False)
        environ = {"NOTIFY_SOCKET": f"{short_dir}/n"} if is_supervised else {}

        assert app.is_told_of(77, environ) is is_told
        if is_told:
            assert heard.recv(99) == b"MAINPID=77\nREADY=1"
        else:
            with pytest.raises(BlockingIOError):
                heard.recv(99)
