"""The service the ttrpc contract is checked with, described here and served twice: on a poll loop and under trio."""

import math
import threading
from typing import Any

import trio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ttrpc import service
from ttrpc.aio import Context, Messages
from ttrpc.errors import StatusError
from ttrpc.server_call import ServerCall
from ttrpc.status import Code

NAME = "shimd.test.v1.Echo"
DETAILS = (("type.example/Why", b"\x08\x01"), ("", b""))


def describe() -> Any:
    """Declare the service to the library, once per process; returns the class of its one message."""
    file = descriptor_pb2.FileDescriptorProto(name="shimd_test.proto", package="shimd.test.v1", syntax="proto3")
    message = file.message_type.add(name="Text")
    message.field.add(name="data", number=1, type=12, label=1)
    message.field.add(name="number", number=2, type=3, label=1)
    message.field.add(name="wish", number=3, type=9, label=1)
    echo = file.service.add(name="Echo")
    for name, caller_streams, callee_streams in (
        ("Say", False, False),
        ("Count", False, True),
        ("Sum", True, False),
        ("Chat", True, True),
        ("Missing", False, False),
    ):
        echo.method.add(
            name=name,
            input_type=".shimd.test.v1.Text",
            output_type=".shimd.test.v1.Text",
            client_streaming=caller_streams,
            server_streaming=callee_streams,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    service.declare(pool.FindServiceByName(NAME))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("shimd.test.v1.Text"))


Text = describe()


def say(request: Any, metadata: dict[str, str], deadline_s: float | None) -> Any:
    """What Say answers: the data again, or what the request wishes. `wait` is each server's own affair."""
    if request.wish == "big":
        return Text(data=bytes(request.number))
    if request.wish == "metadata":
        return Text(data=repr(sorted(metadata.items())).encode())
    if request.wish == "deadline":
        return Text(number=-1 if deadline_s is None else int(deadline_s * 1e9))
    if request.wish == "fail":
        raise StatusError(request.number, "as you wish", DETAILS)
    if request.wish == "crash":
        raise RuntimeError("as you wish")
    return Text(data=request.data, number=request.number)


class Log:
    """What a server's side has to tell the test, from its own thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def note(self, what: str) -> None:
        with self._lock:
            self._counts[what] = self._counts.get(what, 0) + 1

    def count(self, what: str) -> int:
        with self._lock:
            return self._counts.get(what, 0)


class LoopEcho:
    """Handlers for the poll loop: each takes the call and arranges its answer."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def Say(self, call: ServerCall) -> None:  # noqa: N802
        self.log.note("said")
        if call.request.wish == "wait":
            call.on_cancel(lambda: self.log.note("cancelled"))
            return
        try:
            call.reply(say(call.request, call.metadata, call.deadline_s))
        except StatusError as error:
            call.fail(error.code, error.message, error.status.details)

    def Count(self, call: ServerCall) -> None:  # noqa: N802
        request, state = call.request, {"next": 0}
        call.on_cancel(lambda: self.log.note("cancelled"))

        def go_on() -> None:
            while state["next"] < request.number:
                number = state["next"]
                state["next"] += 1
                self.log.note("counted")
                if request.wish == "too long":
                    try:
                        call.send(Text(data=bytes(4 << 20)))
                    except StatusError as error:
                        call.fail(error.code, error.message)
                        return
                if not call.send(Text(number=number, data=request.data)) and request.wish != "deaf":
                    return
            self.log.note("ended")
            call.finish()

        call.on_drain = go_on
        go_on()

    def Sum(self, call: ServerCall) -> None:  # noqa: N802
        total = {"number": 0, "data": b""}

        def add(message: Any) -> None:
            total["number"] += message.number
            total["data"] += message.data

        call.on_message(add)
        call.on_half_close(lambda: call.reply(Text(**total)))

    def Chat(self, call: ServerCall) -> None:  # noqa: N802
        """Says everything again; `wait` stops it from listening, `bye` makes it end, `no` fail."""
        call.on_cancel(lambda: self.log.note("cancelled"))

        def hear(message: Any) -> None:
            if message.wish == "wait":
                call.pause()
                self.log.note("paused")
            elif message.wish == "bye":
                call.finish()
            elif message.wish == "no":
                call.fail(Code.ABORTED, "no")
            else:
                call.send(message)

        call.on_message(hear)
        call.on_half_close(call.finish)


class TrioEcho:
    """The same for trio."""

    def __init__(self, log: Log) -> None:
        self.log = log

    async def Say(self, request: Any, context: Context) -> Any:  # noqa: N802
        self.log.note("said")
        if request.wish == "wait":
            await self.wait()
        left_s = None if context.deadline == math.inf else context.deadline - trio.current_time()
        return say(request, context.metadata, left_s)

    async def wait(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.log.note("cancelled")

    async def Count(self, request: Any, context: Context) -> None:  # noqa: N802
        try:
            for number in range(request.number):
                self.log.note("counted")
                if request.wish == "too long":
                    await context.send(Text(data=bytes(4 << 20)))
                await context.send(Text(number=number, data=request.data))
            self.log.note("ended")
        except trio.Cancelled:
            self.log.note("cancelled")
            raise

    async def Sum(self, messages: Messages, context: Context) -> Any:  # noqa: N802
        total, data = 0, b""
        async for message in messages:
            total += message.number
            data += message.data
        return Text(number=total, data=data)

    async def Chat(self, messages: Messages, context: Context) -> None:  # noqa: N802
        async for message in messages:
            if message.wish == "wait":
                self.log.note("paused")
                await self.wait()
            elif message.wish == "bye":
                return
            elif message.wish == "no":
                raise StatusError(Code.ABORTED, "no")
            else:
                await context.send(message)
