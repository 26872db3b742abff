"""The folders of rehearsals: whoever is killed leaves one, and nobody's that is in use is removed."""

import fcntl
import os

import pytest

from shim.keeper import rehearsal


def test_only_what_nobody_holds_is_swept(tmp_path: "os.PathLike[str]", monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner may be in another PID namespace with the same /dev/shm, so its pid says nothing."""
    parent = os.fspath(tmp_path)
    left, used, young, other = (
        os.path.join(parent, name)
        for name in ("shimd-stage-999999999-a", "shimd-stage-999999999-b", "shimd-stage-1-c", "other")
    )
    for path in (left, used, young, other):
        os.mkdir(path)
    for path in (left, used, other):
        os.utime(path, (0, 0))
    fd = os.open(used, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    monkeypatch.setattr(rehearsal, "MEMORY", parent)
    monkeypatch.setenv("SHIMD_KEEPER_LIVES", "0")
    try:
        assert rehearsal.rehearse_in_memory(parent, []).startswith("0 lives rehearsed")
    finally:
        os.close(fd)

    assert sorted(os.listdir(parent)) == sorted(map(os.path.basename, (used, young, other)))


def test_a_rehearsal_ends_with_the_keeper_it_is_for(short_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([1, 2])
    monkeypatch.setattr(rehearsal.os, "getppid", lambda: next(parents))
    with pytest.raises(ProcessLookupError, match="nobody is left"):
        rehearsal.rehearse(short_dir, 1000)

    assert list(parents) == []
