"""The kubelet's side of the CRI, as far as a test of pods needs it: its messages by name and number, and the calls.

Only the fields used here are declared; protobuf skips the others. The numbers are those of runtime.v1.
"""

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.support.grpcapi import OPTIONS, Refused
from tests.support.waiting import wait_until

CALL_S = 60.0
READY_S = 30.0
PACKAGE = "runtime.v1"
NODE = 2  # NamespaceMode: share the host's
RUNNING, EXITED = 1, 2  # ContainerState

# message → fields, each `name number type`; a `*` repeats, `%` is a map of strings.
MESSAGES = {
    "NamespaceOption": "network 1 int32, pid 2 int32, ipc 3 int32",
    "LinuxSandboxSecurityContext": "namespace_options 1 NamespaceOption",
    "LinuxPodSandboxConfig": "cgroup_parent 1 string, security_context 2 LinuxSandboxSecurityContext",
    "PodSandboxMetadata": "name 1 string, uid 2 string, namespace 3 string, attempt 4 uint32",
    "PodSandboxConfig": "metadata 1 PodSandboxMetadata, hostname 2 string, log_directory 3 string, "
    "linux 8 LinuxPodSandboxConfig",
    "RunPodSandboxRequest": "config 1 PodSandboxConfig, runtime_handler 2 string",
    "RunPodSandboxResponse": "pod_sandbox_id 1 string",
    "StopPodSandboxRequest": "pod_sandbox_id 1 string",
    "StopPodSandboxResponse": "",
    "RemovePodSandboxRequest": "pod_sandbox_id 1 string",
    "RemovePodSandboxResponse": "",
    "ContainerMetadata": "name 1 string, attempt 2 uint32",
    "ImageSpec": "image 1 string",
    "LinuxContainerSecurityContext": "namespace_options 3 NamespaceOption",
    "LinuxContainerConfig": "security_context 2 LinuxContainerSecurityContext",
    "ContainerConfig": "metadata 1 ContainerMetadata, image 2 ImageSpec, command 3 *string, log_path 11 string, "
    "linux 15 LinuxContainerConfig",
    "CreateContainerRequest": "pod_sandbox_id 1 string, config 2 ContainerConfig, sandbox_config 3 PodSandboxConfig",
    "CreateContainerResponse": "container_id 1 string",
    "StartContainerRequest": "container_id 1 string",
    "StartContainerResponse": "",
    "StopContainerRequest": "container_id 1 string, timeout 2 int64",
    "StopContainerResponse": "",
    "RemoveContainerRequest": "container_id 1 string",
    "RemoveContainerResponse": "",
    "ContainerStatusRequest": "container_id 1 string",
    "ContainerStatus": "id 1 string, state 3 int32, finished_at 6 int64, exit_code 7 int32, reason 10 string",
    "ContainerStatusResponse": "status 1 ContainerStatus",
    "ExecSyncRequest": "container_id 1 string, cmd 2 *string, timeout 3 int64",
    "ExecSyncResponse": "stdout 1 bytes, stderr 2 bytes, exit_code 3 int32",
    "ListPodSandboxRequest": "",
    "ListPodSandboxResponse": "",
}
CALLS = (
    "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer", "StartContainer", "StopContainer",
    "RemoveContainer", "ContainerStatus", "ExecSync", "ListPodSandbox",
)  # fmt: skip


def message_classes() -> dict[str, Any]:
    """A class for each message, in a pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(name="cri.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for words in filter(None, fields.split(", ")):
            add_field(message, *words.split())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in MESSAGES}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


def add_field(message: Any, name: str, number: str, kind: str) -> None:
    field = message.field.add(name=name, number=int(number))
    kinds = descriptor_pb2.FieldDescriptorProto
    field.label = kinds.LABEL_REPEATED if kind.startswith("*") else kinds.LABEL_OPTIONAL
    kind = kind.removeprefix("*")
    if kind in MESSAGES:
        field.type, field.type_name = kinds.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")


class CriApi:
    """One connection to the CRI of a containerd. Owns: the channel."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{address}", options=OPTIONS)
        self._classes = message_classes()

    def call(self, name: str, **fields: Any) -> Any:
        """One call; the fields are the request's. Raises: Refused."""
        assert name in CALLS, name
        rpc = self._channel.unary_unary(
            f"/{PACKAGE}.RuntimeService/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self._classes[f"{name}Response"].FromString,
        )
        try:
            return rpc(self._classes[f"{name}Request"](**fields), timeout=CALL_S, wait_for_ready=True)
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details()) from None

    def wait_ready(self) -> None:
        """Wait until it serves: containerd's socket answers before this plugin does, with `not initialized yet`."""
        wait_until(self._is_ready, deadline_s=READY_S, what="the CRI to be initialized")

    def _is_ready(self) -> bool:
        try:
            self.call("ListPodSandbox")
        except Refused:
            return False
        return True

    def close(self) -> None:
        self._channel.close()
