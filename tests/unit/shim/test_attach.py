"""Attach streams: everybody gets everything in order, and a slow one costs only what it agreed to."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.core.loop import Loop
from shim.core.pipes import TAKE_BYTES
from shim.streams.attach import BEHIND_BYTES
from shim.streams.outlets import LIMIT_BYTES
from shim.streams.ring import RING_BYTES, Ring
from shim.streams.spool import ROLL_BYTES
from shim.streams.stdio import Stdio, StdioRequest
from shim.task.exits import DRAIN_S
from tests.support.streams import FakeCall, play, turn, turn_until
from ttrpc.api import shim as api
from ttrpc.errors import StatusError
from ttrpc.outbox import HIGH_WATER_BYTES
from ttrpc.status import Code

EXIT = api.ExitRecord(pid=7, code=3)
OUTPUT = api.AttachOpen(output=True)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Process:
    """The test's process: its Stdio and its own ends."""

    def __init__(self, loop: Loop, stdio: Stdio) -> None:
        self.loop = loop
        self.stdio = stdio
        self.stdin, self.out, self.err = (os.dup(fd) if fd is not None else -1 for fd in stdio.child_ends())
        if self.stdin >= 0:
            os.set_blocking(self.stdin, False)
        if self.out >= 0:
            os.set_blocking(self.out, False)
        stdio.started()

    def says(self, data: bytes) -> None:
        assert os.write(self.out, data) == len(data)

    def attach(self, opening: api.AttachOpen, *, high_water_bytes: int = 1 << 30) -> FakeCall:
        call = FakeCall(high_water_bytes=high_water_bytes)
        self.stdio.attach(call, opening)  # type: ignore[arg-type]
        return call

    def exits(self) -> None:
        self.close()
        play(self.loop, self.stdio.drain(DRAIN_S))
        self.stdio.exited(EXIT)

    def close(self) -> None:
        for fd in (self.stdin, self.out, self.err):
            if fd >= 0:
                os.close(fd)
        self.stdin = self.out = self.err = -1


Start = Callable[..., Process]


@pytest.fixture
def start(loop: Loop, tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def start(stdin: str = "attach:", stdout: str = "attach:", stderr: str = "attach:") -> Process:
        uris = [uri.format(dir=tmp_path) for uri in (stdin, stdout, stderr)]
        stdio = Stdio(loop, str(tmp_path), f"p{len(started)}", StdioRequest(*uris))
        stdio.open()
        started.append(Process(loop, stdio))
        return started[-1]

    yield start
    for process in started:
        process.close()
        process.stdio.close()
    turn(loop)


# --- output -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stdout", ["attach:", "log://{dir}/c.log", "log://{dir}/c.log?format=raw", "file://{dir}/c.log"]
)
def test_every_client_gets_everything_from_its_opening_to_the_exit(loop: Loop, start: Start, stdout: str) -> None:
    process = start(stdout=stdout, stderr="attach:" if stdout == "attach:" else "")
    first = process.attach(OUTPUT)
    process.says(b"one ")
    turn_until(loop, lambda: first.stdout() == b"one ")
    second = process.attach(OUTPUT)
    process.says(b"two ")
    os.write(process.err, b"err")
    turn_until(loop, lambda: second.stderr())
    process.says(b"three")
    process.exits()

    assert first.stdout() == b"one two three"
    assert second.stdout() == b"two three"
    assert first.stderr() == second.stderr() == b"err"
    for client in (first, second):
        assert client.kinds()[0] == "opened"
        assert client.kinds()[-1] == "exited"
        assert client.sent[-1].exited == EXIT
        assert client.finished
    assert process.stdio.attached == 0


@pytest.mark.parametrize("stdout", ["attach:", "log://{dir}/c.log", "log://{dir}/c.log?format=raw"])
def test_replay_gives_the_newest_bytes_once_and_then_the_rest(loop: Loop, start: Start, stdout: str) -> None:
    process = start(stdout=stdout, stderr="")
    process.says(b"0123456789")
    turn_until(loop, lambda: process.stdio.log_bytes == 10)

    client = process.attach(api.AttachOpen(output=True, replay_bytes=4))
    everything = process.attach(api.AttachOpen(output=True, replay_bytes=1 << 30))
    process.says(b"abc")
    process.exits()

    assert client.stdout() == b"6789abc"
    assert everything.stdout() == b"0123456789abc"


def test_who_attaches_after_the_exit_gets_the_replay_and_the_exit(start: Start) -> None:
    process = start()
    process.says(b"last words")
    process.exits()

    client = process.attach(api.AttachOpen(output=True, replay_bytes=100))

    assert client.kinds() == ["opened", "stdout", "exited"]
    assert client.stdout() == b"last words"
    assert client.finished


def test_without_a_client_the_process_never_waits_and_the_loss_is_counted(loop: Loop, start: Start) -> None:
    """The ring keeps the newest; what leaves it without any client having got it is lost, exactly."""
    process = start()
    total = 0
    while total < 20 * RING_BYTES:
        process.says(b"x" * 50_000)
        total += 50_000
        turn_until(loop, lambda: process.stdio.log_bytes == total)  # noqa: B023 - called at once
    assert process.stdio.dropped_bytes == total - RING_BYTES

    client = process.attach(api.AttachOpen(output=True, replay_bytes=RING_BYTES))
    assert len(client.stdout()) == RING_BYTES
    process.says(b"y" * RING_BYTES)
    turn_until(loop, lambda: len(client.stdout()) == 2 * RING_BYTES)
    assert process.stdio.dropped_bytes == total - RING_BYTES, "all that came since was delivered"


def test_a_log_kept_it_so_what_leaves_the_ring_is_no_loss(loop: Loop, start: Start) -> None:
    process = start(stdout="log://{dir}/c.log", stderr="")
    process.says(b"x" * RING_BYTES)
    process.says(b"x" * RING_BYTES)
    turn_until(loop, lambda: process.stdio.log_bytes == 2 * RING_BYTES)
    assert process.stdio.dropped_bytes == 0


def test_a_client_too_far_behind_is_cut_with_the_reason(loop: Loop, start: Start) -> None:
    """The other client and the process go on."""
    process = start()
    slow = process.attach(OUTPUT, high_water_bytes=1000)
    quick = process.attach(OUTPUT)
    total = 0
    while not slow.finished:
        process.says(b"x" * 50_000)
        total += 50_000
        turn_until(loop, lambda: process.stdio.log_bytes == total)  # noqa: B023 - called at once
        assert total < 3 * BEHIND_BYTES
    assert slow.kinds()[-1] == "cut"
    cut = slow.sent[-1].cut
    assert cut.reason == "reads too slowly"
    assert cut.missed_bytes == total - len(slow.stdout())
    assert total > BEHIND_BYTES
    assert quick.stdout() == b"x" * total
    assert process.stdio.attached == 1


def test_a_client_with_backpressure_holds_the_process_up_until_it_reads(loop: Loop, start: Start) -> None:
    process = start()
    client = process.attach(api.AttachOpen(output=True, backpressure=True), high_water_bytes=1000)
    total = _fill(loop, process)
    assert len(client.stdout()) < total

    while len(client.stdout()) < total:
        client.read()
        turn(loop, 1)
    assert client.stdout() == b"z" * total
    process.exits()
    client.read()
    assert client.kinds()[-1] == "exited"


@pytest.mark.parametrize("stdout", ["attach:", "log://{dir}/c.log"])
def test_each_piece_of_much_output_has_the_place_behind_it(loop: Loop, start: Start, stdout: str) -> None:
    process = start(stdout=stdout, stderr="attach:" if stdout == "attach:" else "")
    client = process.attach(OUTPUT)
    data = b"".join(b"%07d\n" % number for number in range(100_000))
    for at in range(0, len(data), 1 << 18):  # more than is taken at once, into a pipe that holds it
        process.says(data[at : at + (1 << 18)])
        turn_until(loop, lambda sent=at: len(client.stdout()) == min(len(data), sent + (1 << 18)))

    passed = 0
    for message in client.sent[1:]:
        passed += len(message.stdout)
        assert message.place.stdout == passed
    assert client.stdout() == data
    assert passed == len(data)


def test_a_client_with_backpressure_is_never_further_behind_than_a_spool_goes_back() -> None:
    """Unsent may be the high-water mark and the chunk that passed it; of the first chunk a part may have been sent."""
    assert HIGH_WATER_BYTES + 2 * TAKE_BYTES <= ROLL_BYTES


def test_a_connection_found_dead_by_a_send_is_no_client_any_more(loop: Loop, start: Start) -> None:
    process = start()
    client = process.attach(api.AttachOpen(output=True, backpressure=True))
    client.dies_at = 2
    process.says(b"hello")
    turn_until(loop, lambda: process.stdio.log_bytes == 5)
    assert process.stdio.attached == 0
    process.says(b"more")
    assert turn_until(loop, lambda: process.stdio.log_bytes == 9)


@pytest.mark.parametrize("how", ["disconnects", "is cut short by the exit"])
def test_the_process_goes_on_when_the_client_that_held_it_up_goes(loop: Loop, start: Start, how: str) -> None:
    process = start()
    client = process.attach(api.AttachOpen(output=True, backpressure=True), high_water_bytes=1000)
    total = _fill(loop, process)

    if how == "disconnects":
        client.disconnects()
        turn_until(loop, lambda: process.stdio.log_bytes == total)
        assert process.stdio.attached == 0
    else:
        began = loop.clock()
        process.exits()
        assert loop.clock() - began < 1.5, "an exit waits for no client"
        assert not client.finished
        while not client.finished:
            client.read()
        assert client.stdout() == b"z" * total
        assert client.kinds()[-1] == "exited"


def test_a_slow_client_gets_all_that_is_queued_even_after_the_streams_are_closed(start: Start) -> None:
    process = start()
    client = process.attach(OUTPUT, high_water_bytes=10)
    process.says(b"a" * 100_000)
    process.exits()
    process.stdio.close()

    while not client.finished:
        client.read()
    assert client.stdout() == b"a" * 100_000
    assert client.kinds()[-1] == "exited"


def test_a_process_whose_start_failed_cuts_its_clients(loop: Loop, tmp_path: Path) -> None:
    stdio = Stdio(loop, str(tmp_path), "p", StdioRequest("attach:", "attach:", ""))
    stdio.open()
    client = FakeCall()
    stdio.attach(client, OUTPUT)  # type: ignore[arg-type]
    stdio.close()
    assert client.kinds() == ["opened", "cut"]
    assert client.finished


# --- input ------------------------------------------------------------------------------------------------------------


def test_several_clients_write_and_one_closes(loop: Loop, start: Start) -> None:
    process = start()
    clients = [process.attach(api.AttachOpen(stdin=True)) for _ in range(2)]
    clients[0].says(api.AttachInput(stdin=b"from one, "))
    clients[1].says(api.AttachInput(stdin=b"from two"))
    assert os.read(process.stdin, 100) == b"from one, from two"
    with pytest.raises(BlockingIOError):
        os.read(process.stdin, 100)

    clients[1].says(api.AttachInput(close_stdin=True))
    turn(loop)
    assert os.read(process.stdin, 100) == b""
    clients[0].says(api.AttachInput(stdin=b"too late"))
    assert os.read(process.stdin, 100) == b""


def test_a_client_whose_process_does_not_read_is_asked_to_wait(loop: Loop, start: Start) -> None:
    """What was sent meanwhile arrives whole, and before the end of file that was sent after it."""
    process = start()
    client = process.attach(api.AttachOpen(stdin=True))
    sent = 0
    while not client.paused:
        client.says(api.AttachInput(stdin=b"%07d\n" % sent * 1024))
        sent += 8192
        assert sent < 10 * LIMIT_BYTES
    process.stdio.close_stdin()

    read = b""
    while True:
        turn(loop, 1)
        try:
            data = os.read(process.stdin, 1 << 16)
        except BlockingIOError:
            continue
        if not data:
            break
        read += data
    assert read == b"".join(b"%07d\n" % at * 1024 for at in range(0, sent, 8192))
    assert not client.paused


def test_input_for_a_process_that_closed_its_stdin_goes_nowhere(loop: Loop, start: Start) -> None:
    process = start()
    client = process.attach(api.AttachOpen(stdin=True))
    os.close(process.stdin)
    process.stdin = -1
    for _ in range(50):
        client.says(api.AttachInput(stdin=bytes(10_000)))
        turn(loop, 1)
    assert not client.paused


def test_who_did_not_ask_for_stdin_cannot_write(start: Start) -> None:
    process = start()
    client = process.attach(OUTPUT)
    client.says(api.AttachInput(stdin=b"no"))
    client.says(api.AttachInput(close_stdin=True))
    with pytest.raises(BlockingIOError):
        os.read(process.stdin, 100)


def test_input_may_come_before_the_process(loop: Loop, tmp_path: Path) -> None:
    """A client that attaches between create and start misses nothing and loses nothing."""
    stdio = Stdio(loop, str(tmp_path), "p", StdioRequest("attach:", "attach:", ""))
    stdio.open()
    client = FakeCall()
    stdio.attach(client, api.AttachOpen(stdin=True, output=True))  # type: ignore[arg-type]
    client.says(api.AttachInput(stdin=b"early"))
    client.says(api.AttachInput(close_stdin=True))
    process = Process(loop, stdio)
    process.says(b"hello")

    assert os.read(process.stdin, 100) == b"early"
    assert os.read(process.stdin, 100) == b""
    process.exits()
    assert client.stdout() == b"hello"
    stdio.close()


@pytest.mark.parametrize(
    ("uris", "opening", "words"),
    [
        (("", "attach:", ""), api.AttachOpen(stdin=True), "create it with -i"),
        (("attach:", "", ""), OUTPUT, "create it with attach: or log://"),
        (("", "", ""), OUTPUT, "nothing to attach to"),
    ],
)
def test_what_was_not_created_for_it_cannot_be_attached(
    start: Start, uris: tuple[str, str, str], opening: api.AttachOpen, words: str
) -> None:
    process = start(*uris)
    with pytest.raises(StatusError, match=words) as refusal:
        process.attach(opening)
    assert refusal.value.code == Code.FAILED_PRECONDITION


# --- the ring ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 90_000), st.booleans()),
            st.tuples(st.just("replay"), st.integers(0, 90_000), st.none()),
        ),
        max_size=25,
    )
)
def test_the_ring_keeps_the_newest_and_counts_exactly_what_nobody_got(
    steps: list[tuple[str, int, bool | None]],
) -> None:
    ring = Ring()
    flags: list[bool] = []  # of every byte ever, whether a client got it
    data = bytearray()
    for kind, size, delivered in steps:
        if kind == "add":
            piece = os.urandom(8) * (size // 8 + 1)
            ring.add("stdout", piece[:size], delivered=bool(delivered))
            data += piece[:size]
            flags += [bool(delivered)] * size
        else:
            got = b"".join(piece for _stream, piece in ring.replay(size))
            expected = bytes(data[-min(size, RING_BYTES) :]) if size else b""
            assert got == expected
            if got:
                flags[-len(got) :] = [True] * len(got)
    outside = flags[:-RING_BYTES] if len(flags) > RING_BYTES else []
    assert ring.lost_bytes == outside.count(False)


def _fill(loop: Loop, process: Process) -> int:
    """Write until the process would block; answers with how much was taken."""
    total = 0
    for _ in range(1000):
        try:
            total += os.write(process.out, b"z" * 50_000)
        except BlockingIOError:
            return total
        turn(loop, 1)
    raise AssertionError("the process was never made to wait")


# --- coming back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stdout", ["attach:", "log://{dir}/c.log", "log://{dir}/c.log?format=raw"])
def test_a_client_that_comes_back_gets_what_it_missed_once(loop: Loop, start: Start, stdout: str) -> None:
    process = start(stdout=stdout, stderr="")
    first = process.attach(OUTPUT)
    process.says(b"one ")
    turn_until(loop, lambda: first.stdout() == b"one ")
    place = first.sent[-1].place
    first.disconnects()
    process.says(b"two ")
    turn_until(loop, lambda: process.stdio.log_bytes == 8)
    again = process.attach(api.AttachOpen(output=True, resume=place))
    process.says(b"three ")
    turn_until(loop, lambda: b"three" in again.stdout())
    process.exits()

    assert again.stdout() == b"two three "
    assert again.kinds()[-1] == "exited"
    assert again.sent[0].opened.place == place


def test_a_place_of_another_process_is_said_not_to_be_known(loop: Loop, start: Start) -> None:
    process = start(stderr="")
    process.says(b"one ")
    turn_until(loop, lambda: process.stdio.log_bytes == 4)
    client = process.attach(api.AttachOpen(output=True, resume=api.AttachPlace(run=1, stdout=2)))

    assert client.kinds() == ["opened", "missed"]
    assert client.sent[0].opened.place.stdout == 4


def test_input_is_counted_for_each_client_over_its_streams(loop: Loop, start: Start) -> None:
    process = start(stderr="")
    opening = api.AttachOpen(stdin=True, output=True, input_id=7)
    first = process.attach(opening)
    assert first.sent[0].opened.accepted == 0
    first.says(api.AttachInput(stdin=b"hello"))
    assert first.sent[-1].accepted == 5
    first.disconnects()
    opening.input_goes_on = True
    assert process.attach(opening).sent[0].opened.accepted == 5
    opening.input_id = 8
    assert not process.attach(opening).sent[0].opened.HasField("accepted")
    assert os.read(process.stdin, 100) == b"hello"
