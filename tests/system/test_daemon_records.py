"""Version, namespaces and container records, as containerd's clients rely on them."""

import os
from typing import Any

import pytest

from tests.support.daemonbox import CONTAINERS, NAMESPACE, RUNTIME, DaemonBox, refused
from ttrpc.api import (
    containers,
    introspection,
    namespaces,
    version,
    wkt,
)
from ttrpc.status import Code

NAMESPACES = "containerd.services.namespaces.v1.Namespaces"
EVENTS = "containerd.services.events.v1.Events"


# --- who answers


def test_version_and_introspection(box: DaemonBox) -> None:
    """The uuid is the store's for life, the pid this process's, plugins can be filtered."""
    told: version.VersionResponse = box.call("containerd.services.version.v1.Version", "Version", wkt.Empty())
    assert told.version
    service = "containerd.services.introspection.v1.Introspection"
    server = box.call(service, "Server", wkt.Empty())
    assert box.daemon is not None
    assert server.pid == box.daemon.pid
    assert server.pidns == os.stat("/proc/self/ns/pid").st_ino
    box.restart()
    assert box.call(service, "Server", wkt.Empty()).uuid == server.uuid
    found = box.call(service, "Plugins", introspection.PluginsRequest(filters=["id==restart"])).plugins
    assert [plugin.id for plugin in found] == ["restart"]


def test_a_namespace_is_required_and_checked(box: DaemonBox) -> None:
    """By either metadata key; the first write makes it; Get of an unknown one is not an error."""
    request = containers.ListContainersRequest()
    with refused(Code.FAILED_PRECONDITION, "namespace is required"):
        box.client.call(CONTAINERS, "List", request, timeout_s=5)
    with refused(Code.INVALID_ARGUMENT, "namespace"):
        box.call(CONTAINERS, "List", request, ns="no/such")
    box.client.call(CONTAINERS, "List", request, timeout_s=5, metadata={"containerd-namespace": "moby"})
    get = namespaces.GetNamespaceRequest(name="moby")
    assert box.call(NAMESPACES, "Get", get).namespace.labels == {}
    assert list(box.call(NAMESPACES, "List", namespaces.ListNamespacesRequest()).namespaces) == []
    box.create_container("c1", "true")
    listed = box.call(NAMESPACES, "List", namespaces.ListNamespacesRequest()).namespaces
    assert [one.name for one in listed] == [NAMESPACE]


def test_namespaces_have_labels_and_must_be_empty_to_go(box: DaemonBox) -> None:
    """Create, Update by mask, Delete."""
    made = namespaces.Namespace(name="ns", labels={"a": "1", "b": "2"})
    box.call(NAMESPACES, "Create", namespaces.CreateNamespaceRequest(namespace=made))
    with refused(Code.ALREADY_EXISTS):
        box.call(NAMESPACES, "Create", namespaces.CreateNamespaceRequest(namespace=made))
    update = namespaces.UpdateNamespaceRequest(namespace=namespaces.Namespace(name="ns", labels={"a": "9"}))
    update.update_mask.paths.extend(["labels.a", "labels.b"])
    assert box.call(NAMESPACES, "Update", update).namespace.labels == {"a": "9"}
    matching = namespaces.ListNamespacesRequest(filter="labels.a==9")
    assert [one.name for one in box.call(NAMESPACES, "List", matching).namespaces] == ["ns"]
    box.create_container("c1", "true")
    with refused(Code.FAILED_PRECONDITION, "must be empty"):
        box.call(NAMESPACES, "Delete", namespaces.DeleteNamespaceRequest(name=NAMESPACE))
    box.call(NAMESPACES, "Delete", namespaces.DeleteNamespaceRequest(name="ns"))
    with refused(Code.NOT_FOUND):
        box.call(NAMESPACES, "Delete", namespaces.DeleteNamespaceRequest(name="ns"))


# --- containers


def test_containers_are_records(box: DaemonBox) -> None:
    """Created once, filtered, updated by mask, refused where they cannot be."""
    made = box.create_container("web-1", "true", labels={"tier": "front"}).container
    assert made.created_at.seconds > 0
    box.create_container("db-1", "true")
    with refused(Code.ALREADY_EXISTS, "web-1"):
        box.create_container("web-1", "true")
    for filters, expected in (
        (["labels.tier==front"], ["web-1"]),
        (["id~=^db"], ["db-1"]),
        ([f"runtime.name=={RUNTIME}"], ["db-1", "web-1"]),
        (["id==db-1", "labels.tier"], ["db-1", "web-1"]),
    ):
        found = box.call(CONTAINERS, "List", containers.ListContainersRequest(filters=filters)).containers
        assert [one.id for one in found] == expected
        stream = box.client.open_stream(
            CONTAINERS,
            "ListStream",
            containers.ListContainersRequest(filters=filters),
            timeout_s=5,
            metadata={"containerd-namespace-ttrpc": NAMESPACE},
        )
        assert [one.container.id for one in stream] == expected
    with refused(Code.INVALID_ARGUMENT, "filter"):
        box.call(CONTAINERS, "List", containers.ListContainersRequest(filters=["=="]))

    update = containers.UpdateContainerRequest(container=containers.Container(id="web-1", labels={"x.y": "1"}))
    update.update_mask.paths.append("labels.x.y")
    changed = box.call(CONTAINERS, "Update", update).container
    assert changed.labels == {"tier": "front", "x.y": "1"}
    assert changed.spec.value == made.spec.value
    update.update_mask.paths[:] = ["created_at"]
    with refused(Code.INVALID_ARGUMENT, "created_at"):
        box.call(CONTAINERS, "Update", update)
    box.delete_container("web-1")
    with refused(Code.NOT_FOUND):
        box.delete_container("web-1")
    topics = [event.topic for event in box.events("event.id==web-1")]
    assert topics == ["/containers/create", "/containers/update", "/containers/delete"]


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (containers.Container(id=""), "must not be empty"),
        (containers.Container(id="a/b"), "letters and digits"),
        (containers.Container(id="x" * 77), "77 characters"),
        (containers.Container(id="a"), "runtime.name is required"),
        (
            containers.Container(
                id="a", runtime=containers.Container.Runtime(name=RUNTIME), labels={"containerd.io/restart.policy": "?"}
            ),
            "restart policy",
        ),
        (
            containers.Container(id="a", runtime=containers.Container.Runtime(name=RUNTIME), labels={"k": "v" * 5000}),
            "at most 4096",
        ),
        (containers.Container(id="a", runtime=containers.Container.Runtime(name=RUNTIME)), "spec is required"),
    ],
)
def test_containers_that_cannot_be(box: DaemonBox, container: Any, words: str) -> None:
    """Refused before anything is written."""
    with refused(Code.INVALID_ARGUMENT, words):
        box.call(CONTAINERS, "Create", containers.CreateContainerRequest(container=container))
    assert list(box.call(CONTAINERS, "List", containers.ListContainersRequest()).containers) == []
