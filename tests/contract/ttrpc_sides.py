"""Both servers and both clients behind one face each, so that one suite holds every combination to one contract."""

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import trio

from shim.core.loop import Loop
from tests.contract.ttrpc_service import NAME, Log, LoopEcho, TrioEcho
from ttrpc.aio import TrioClient, open_client, serve_ttrpc
from ttrpc.blocking import BlockingClient
from ttrpc.loopdriver import LoopServer
from ttrpc.service import Registry

DEADLINE_S = 20.0  # for anything that should happen at once


def listen(address: str) -> socket.socket:
    """A listening Unix socket; an address that begins with NUL is abstract, and open to every user."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(address)
    sock.listen(64)
    return sock


class LoopSide:
    """The poll-loop server in a thread of its own."""

    def __init__(self, address: str, **limits: Any) -> None:
        self.address = address
        self.log = Log()
        self.errors: list[BaseException] = []
        self.loop = Loop()
        registry = Registry()
        registry.register(NAME, LoopEcho(self.log))
        self.server = LoopServer(
            self.loop,
            registry,
            listener=listen(address),
            start=lambda call: call.handler(call),
            on_error=self.errors.append,
            **limits,
        )
        self._wakers = socket.socketpair()
        self._wanted: list[Callable[[], None]] = []
        self.loop.register(self._wakers[0].fileno(), 1, self._wake)
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def _wake(self, _mask: int) -> None:
        self._wakers[0].recv(1)
        self._wanted.pop(0)()

    def run(self, action: Callable[[], Any]) -> Any:
        """Do this in the server's thread; returns its answer."""
        done, answer = threading.Event(), []

        def act() -> None:
            answer.append(action())
            done.set()

        self._wanted.append(act)
        self._wakers[1].send(b"x")
        assert done.wait(DEADLINE_S)
        return answer[0]

    @property
    def connections(self) -> int:
        return len(self.server.connections)

    def close(self) -> None:
        if self._thread.is_alive():
            self.run(lambda: (self.server.close(), self.loop.stop()))
        self._thread.join(DEADLINE_S)
        self.loop.close()
        for waker in self._wakers:
            waker.close()


class TrioSide:
    """The trio server in a thread of its own."""

    def __init__(self, address: str, **limits: Any) -> None:
        self.address = address
        self.log = Log()
        self._limits = limits
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope: trio.CancelScope | None = None
        self._listener = listen(address)
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)

    async def _main(self) -> None:
        registry = Registry()
        registry.register(NAME, TrioEcho(self.log))
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(lambda **given: serve_ttrpc(self._listener, registry, **self._limits, **given))
                self._token = trio.lowlevel.current_trio_token()
                self._ready.set()

    def close(self) -> None:
        if self._thread.is_alive():
            assert self._token is not None
            assert self._scope is not None
            self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(DEADLINE_S)
        self._listener.close()


class BlockingSide:
    """The blocking client."""

    def __init__(self, address: str, **options: Any) -> None:
        self.client = BlockingClient.connect(address, **options)

    def call(self, method: str, request: Any, *, service: str = NAME, **options: Any) -> Any:
        return self.client.call(service, method, request, **options)

    def stream(self, method: str, request: Any = None, **options: Any) -> Any:
        return self.client.open_stream(NAME, method, request, **options)

    def close(self) -> None:
        self.client.close()


class TrioClientSide:
    """The trio client, run in a thread of its own and asked from the test's."""

    def __init__(self, address: str, **options: Any) -> None:
        self._address, self._options = address, options
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        if self._failure is not None:
            self._thread.join(DEADLINE_S)
            raise self._failure

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        try:
            async with open_client(self._address, **self._options) as self.client:
                self._ready.set()
                await self._stop.wait()
        except Exception as error:  # noqa: BLE001 - the test's thread raises it
            self._failure = error
            self._ready.set()

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run an async function in the client's thread; its answer or error is ours."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def call(self, method: str, request: Any, *, service: str = NAME, **options: Any) -> Any:
        client: TrioClient = self.client
        return self.ask(lambda: client.call(service, method, request, **options))

    def stream(self, method: str, request: Any = None, **options: Any) -> Any:
        return AskedStream(self, self.client.open_stream(NAME, method, request, **options))

    def close(self) -> None:
        if self._thread.is_alive():
            self._token.run_sync_soon(self._stop.set)
        self._thread.join(DEADLINE_S)


class AskedStream:
    """A trio stream asked from another thread."""

    def __init__(self, side: TrioClientSide, stream: Any) -> None:
        self._side, self._stream = side, stream
        side.ask(stream.__aenter__)

    def send(self, message: Any) -> None:
        self._side.ask(self._stream.send, message)

    def close_send(self) -> None:
        self._side.ask(self._stream.close_send)

    def receive(self) -> Any:
        return self._side.ask(self._stream.receive)

    def __iter__(self) -> Any:
        return iter(self.receive, None)

    def close(self) -> None:
        self._side.ask(self._stream.__aexit__, None, None, None)


SERVERS = {"loop": LoopSide, "trio": TrioSide}
CLIENTS = {"blocking": BlockingSide, "trio": TrioClientSide}


def open_fds() -> int:
    """How many descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))
