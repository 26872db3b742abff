"""containerd's gRPC API for tests, with our own message classes: the calls `ctr` has no command for."""

from typing import Any

import grpc

from ttrpc.service import methods

CALL_S = 20.0
TASKS = "containerd.services.tasks.v1.Tasks"
OPTIONS = [("grpc.default_authority", "localhost"), ("grpc.enable_retries", 0)]


class Refused(Exception):
    """An answer that is not OK: the kind's name in gRPC, and the words."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(f"{kind}: {words}")
        self.kind = kind
        self.words = words


class GrpcApi:
    """One connection to a daemon's gRPC socket, in one namespace. Owns: the channel."""

    def __init__(self, address: str, namespace: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{address}", options=OPTIONS)
        self._metadata = (("containerd-namespace", namespace),)

    def call(self, service: str, name: str, *, timeout_s: float = CALL_S, **fields: Any) -> Any:
        """One unary call; `fields` are the request's. Returns the reply. Raises: Refused."""
        method = methods(service)[name]
        rpc = self._channel.unary_unary(
            f"/{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=method.output.FromString,
        )
        try:
            return rpc(method.input(**fields), timeout=timeout_s, metadata=self._metadata, wait_for_ready=True)
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details()) from None

    def tasks(self, name: str, **fields: Any) -> Any:
        return self.call(TASKS, name, **fields)

    def close(self) -> None:
        self._channel.close()
