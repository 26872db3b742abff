"""What only trio brings: tasks, cancellation, nurseries."""

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from tests.contract.ttrpc_service import NAME, Log, Text, TrioEcho
from tests.contract.ttrpc_sides import DEADLINE_S, listen, open_fds
from ttrpc.aio import TrioClient, open_client, serve_ttrpc
from ttrpc.errors import ConnectionLost, DeadlineExceeded, StatusError
from ttrpc.service import Registry
from ttrpc.status import Code


@contextlib.asynccontextmanager
async def echo_server(address: str, handlers: Any = None, **limits: Any) -> AsyncIterator[Log]:
    """The test service at this address, for the length of the block."""
    log = Log()
    registry = Registry()
    registry.register(NAME, handlers or TrioEcho(log))
    with listen(address) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda **given: serve_ttrpc(listener, registry, **limits, **given))
            yield log
            nursery.cancel_scope.cancel()


async def until(condition: Any) -> None:
    """Let the other tasks run until it holds."""
    with trio.fail_after(DEADLINE_S):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_many_tasks_share_a_connection(short_dir: str) -> None:
    answers: dict[int, int] = {}
    async with echo_server(f"{short_dir}/s"), open_client(f"{short_dir}/s") as client:

        async def ask(number: int) -> None:
            answers[number] = (await client.call(NAME, "Say", Text(number=number), timeout_s=DEADLINE_S)).number

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(ask, number)

    assert answers == {number: number for number in range(300)}


async def test_a_cancelled_call_is_forgotten(short_dir: str) -> None:
    async with echo_server(f"{short_dir}/s") as log, open_client(f"{short_dir}/s") as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, NAME, "Say", Text(wish="wait"))
            await until(lambda: log.count("said"))
            nursery.cancel_scope.cancel()

        assert client._pending == {}
        assert client._connection.open_streams == {}
        assert (await client.call(NAME, "Say", Text(number=1))).number == 1
        assert log.count("cancelled") == 0  # ttrpc has no cancel: the handler goes on


async def test_what_a_block_raises_comes_out_as_it_is(short_dir: str) -> None:
    async with echo_server(f"{short_dir}/s"):
        error = KeyError("mine")
        with pytest.raises(KeyError) as caught:
            async with open_client(f"{short_dir}/s"):
                raise error
        assert caught.value is error
        with pytest.raises(StatusError, match="as you wish"):
            async with open_client(f"{short_dir}/s") as client:
                await client.call(NAME, "Say", Text(wish="fail", number=5))


async def test_cancelling_around_a_client_works(short_dir: str) -> None:
    async with echo_server(f"{short_dir}/s"):
        with trio.move_on_after(0.01) as scope:
            async with open_client(f"{short_dir}/s") as client:
                await client.call(NAME, "Say", Text(wish="wait"))

    assert scope.cancelled_caught
    assert client.is_closed


async def test_the_end_of_the_server_is_seen_by_whoever_waits_for_it(short_dir: str) -> None:
    scope = trio.CancelScope()

    async def serve(task_status: Any) -> None:
        with scope:
            async with echo_server(f"{short_dir}/s"):
                task_status.started()
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        async with open_client(f"{short_dir}/s") as client:
            nursery.start_soon(client.wait_closed)
            assert (await client.call(NAME, "Say", Text(number=1))).number == 1
            assert not client.is_closed
            scope.cancel()
            await client.wait_closed()
            with pytest.raises(ConnectionLost):
                await client.call(NAME, "Say", Text())


async def test_no_descriptor_outlives_server_and_clients(short_dir: str) -> None:
    before = open_fds()
    async with echo_server(f"{short_dir}/s"), contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            client = await stack.enter_async_context(open_client(f"{short_dir}/s"))
            await client.call(NAME, "Say", Text())

    assert open_fds() == before


async def test_a_deadline_ends_the_handler_too(short_dir: str) -> None:
    async with echo_server(f"{short_dir}/s") as log, open_client(f"{short_dir}/s") as client:
        with pytest.raises(DeadlineExceeded):
            await client.call(NAME, "Say", Text(wish="wait"), timeout_s=0.02)
        await until(lambda: log.count("cancelled"))

        assert (await client.call(NAME, "Say", Text(number=1))).number == 1


async def test_a_client_run_by_hand(short_dir: str) -> None:
    async with echo_server(f"{short_dir}/s"), trio.open_nursery() as nursery:
        client = TrioClient(await trio.open_unix_socket(f"{short_dir}/s"))
        nursery.start_soon(client.run)
        assert (await client.call(NAME, "Say", Text(number=1))).number == 1
        client.close()
        await client.wait_closed()


class Unruly:
    """Handlers that do not behave."""

    async def Say(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.wish == "nursery":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.fail)
                await trio.sleep_forever()
        return None if request.wish == "nothing" else "text"

    async def fail(self) -> None:
        raise StatusError(Code.ABORTED, "from a child")

    async def Count(self, request: Any, context: Any) -> Any:  # noqa: N802
        await context.send(Text(number=1))
        return Text(number=2)


async def test_an_error_out_of_a_handlers_nursery_is_the_answer(short_dir: str) -> None:
    async with echo_server(f"{short_dir}/s", Unruly()), open_client(f"{short_dir}/s") as client:
        with pytest.raises(StatusError, match="from a child") as failed:
            await client.call(NAME, "Say", Text(wish="nursery"))

    assert failed.value.code == Code.ABORTED


@pytest.mark.parametrize("wish", ["nothing", "text"])
async def test_a_handler_that_answers_nonsense_is_an_internal_error(short_dir: str, wish: str) -> None:
    async with echo_server(f"{short_dir}/s", Unruly()), open_client(f"{short_dir}/s") as client:
        with pytest.raises(StatusError, match="was answered with") as failed:
            await client.call(NAME, "Say", Text(wish=wish))

    assert failed.value.code == Code.INTERNAL


async def test_a_streaming_handler_returns_nothing(short_dir: str) -> None:
    async with (
        echo_server(f"{short_dir}/s", Unruly()),
        open_client(f"{short_dir}/s") as client,
        client.open_stream(NAME, "Count", Text()) as stream,
    ):
        assert await stream.receive() == Text(number=1)
        with pytest.raises(StatusError, match="streams its answer"):
            await stream.receive()


async def test_leaving_a_stream_forgets_it(short_dir: str) -> None:
    async with echo_server(f"{short_dir}/s"), open_client(f"{short_dir}/s") as client:
        async with client.open_stream(NAME, "Count", Text(number=20_000, data=bytes(100))) as stream:
            assert (await stream.receive()).number == 0

        assert client._connection.open_streams == {}
        assert (await client.call(NAME, "Say", Text(number=1))).number == 1


async def read_all(stream: Any) -> None:
    """Take every message to the stream's end."""
    async for _ in stream:
        pass


async def test_a_new_call_frees_a_connection_held_by_a_full_stream(short_dir: str) -> None:
    """Alone, the unread stream holds it; in company it is the one that fails."""
    async with (
        echo_server(f"{short_dir}/s") as log,
        open_client(f"{short_dir}/s", window_bytes=1 << 16) as client,
        client.open_stream(NAME, "Count", Text(number=50_000, data=bytes(1024))) as stream,
    ):
        await until(lambda: stream.is_full)
        counted = -1
        while counted != log.count("counted"):  # until the server is held up
            counted = log.count("counted")
            for _ in range(50):
                await trio.lowlevel.checkpoint()
        assert (await client.call(NAME, "Say", Text(number=1), timeout_s=DEADLINE_S)).number == 1
        assert counted < 50_000
        with pytest.raises(StatusError, match="left unread"):
            await read_all(stream)


async def test_serving_several_listeners_of_either_kind(short_dir: str) -> None:
    registry = Registry()
    registry.register(NAME, TrioEcho(Log()))
    plain = listen(f"{short_dir}/a")
    second = listen(f"{short_dir}/b")
    wrapped = trio.SocketListener(trio.socket.from_stdlib_socket(second))
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_ttrpc, [plain, wrapped], registry)
        for name in "ab":
            async with open_client(f"{short_dir}/{name}") as client:
                assert (await client.call(NAME, "Say", Text(number=1))).number == 1
        nursery.cancel_scope.cancel()
    plain.close()
    await wrapped.aclose()


async def test_a_peer_that_vanishes_while_its_messages_wait_is_noticed(short_dir: str) -> None:
    """The connection is held and not read, so nothing but a look now and then tells."""
    async with echo_server(f"{short_dir}/s", window_bytes=1 << 16) as log:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(f"{short_dir}/s")
            async with trio.open_nursery() as nursery:
                client = TrioClient(raw.dup())
                nursery.start_soon(client.run)
                async with client.open_stream(NAME, "Chat") as stream:
                    await stream.send(Text(wish="wait"))
                    for _ in range(4):
                        await stream.send(Text(data=bytes(1 << 15)))
                    await until(lambda: log.count("paused"))
                client.close()
                nursery.cancel_scope.cancel()
        await until(lambda: log.count("cancelled"))
        assert log.count("cancelled") == 1
