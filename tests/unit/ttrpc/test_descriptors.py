"""Messages are found by whoever asks first, from whatever thread."""

import sys
import threading

import pytest
from google.protobuf import descriptor_pool

from ttrpc.api import descriptors


def test_threads_that_ask_at_once_all_find_their_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """None sees a set that another is still reading."""
    monkeypatch.setattr(descriptors, "_pool", descriptor_pool.DescriptorPool())
    monkeypatch.setattr(descriptors, "_loaded", set())
    monkeypatch.setattr(descriptors, "_classes", {})
    interval = sys.getswitchinterval()
    names = ["containerd.task.v2.StateRequest", "shimd.v1.InfoRequest"]
    together, found = threading.Barrier(8), []

    def ask() -> None:
        together.wait()
        found.extend(descriptors.message_class(name).DESCRIPTOR.full_name for name in names)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert sorted(found) == sorted(names * 8)
