"""Mounts as typed, and how they join the default ones."""

from typing import Any

import pytest

from daemon.spec import SpecError, parse_mount
from daemon.spec_mounts import default_mounts, merge


def bind(source: str, destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": list(options)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("type=bind,src=/a,dst=/b,ro", bind("/a", "/b", "rbind", "ro", "rprivate")),
        ("type=bind,source=/a,target=/b", bind("/a", "/b", "rbind", "rprivate", "rw")),
        ("type=bind,src=/a,destination=/b,readonly=true", bind("/a", "/b", "rbind", "ro", "rprivate")),
        ("type=bind,src=/a,dst=/b,readonly=false", bind("/a", "/b", "rbind", "rw", "rprivate")),
        ("type=bind,src=/a,dst=/b,options=bind:ro:nosuid", bind("/a", "/b", "bind", "ro", "nosuid", "rprivate")),
        ("src=/a,dst=/b,bind-propagation=rslave", bind("/a", "/b", "rbind", "rslave", "rw")),
        ("src=/a,dst=/b,bind-recursive=disabled", bind("/a", "/b", "bind", "rprivate", "rw")),
        ('type=bind,"src=/a,b",dst=/c', bind("/a,b", "/c", "rbind", "rprivate", "rw")),
        ("/a:/b", bind("/a", "/b", "rbind", "rprivate", "rw")),
        ("/a:/b:ro", bind("/a", "/b", "rbind", "ro", "rprivate")),
        ("/a/../x/:/b//c/:ro,rslave,z", bind("/x", "/b/c", "rbind", "ro", "rslave")),
    ],
)
def test_bind_mounts_in_the_manners_of_docker_and_ctr(text: str, expected: dict[str, Any]) -> None:
    assert expected == parse_mount(text)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("type=tmpfs,dst=/t", ["nosuid", "nodev", "noexec"]),
        (
            "type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=1777",
            ["nosuid", "nodev", "noexec", "size=67108864", "mode=1777"],
        ),
        ("type=tmpfs,dst=/t,size=1k,mode=700,ro", ["nosuid", "nodev", "noexec", "ro", "size=1024", "mode=700"]),
        ("type=tmpfs,dst=/t,options=exec:suid:size=8m", ["nodev", "exec", "suid", "size=8m"]),
    ],
)
def test_tmpfs_mounts_are_closed_unless_opened(text: str, options: list[str]) -> None:
    assert {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": options} == parse_mount(text)


def test_other_types_are_passed_on() -> None:
    expected = {"destination": "/o", "type": "overlay", "source": "overlay", "options": ["lowerdir=/l"]}
    assert expected == parse_mount("type=overlay,src=overlay,dst=/o,options=lowerdir=/l")
    assert parse_mount("type=proc,dst=/proc2")["source"] == "proc"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty mount"),
        ("type=bind,src=/a", "no destination"),
        ("type=bind,dst=/b", "no source"),
        ("dst=/b", "no type"),
        ("type=bind,src=a,dst=/b", "must be an absolute path on the host"),
        ("type=bind,src=/a,dst=b", "must be an absolute path in the container"),
        ("type=bind,src=/a,dst=/", "cannot be / itself"),
        ("type=bind,src=/a,dst=/x/..", "cannot be / itself"),
        ("type=bind,src=/a,src=/c,dst=/b", "says src twice"),
        ("type=bind,scr=/a,dst=/b", "did you mean 'src'"),
        ("type=bind,src=/a,dst=/b,readonyl", "did you mean 'readonly'"),
        ("type=volume,src=v,dst=/b", "no named volumes"),
        ("type=bind,src=/a,dst=/b,tmpfs-size=1m", "tmpfs only"),
        ("type=bind,src=/a,dst=/b,bind-propagation=rslaves", "did you mean 'rslave'"),
        ("type=tmpfs,dst=/t,size=lots", "no size"),
        ("type=tmpfs,dst=/t,mode=9", "octal"),
        ("type=overlay,dst=/o", "needs a source"),
        ("/a", "write /host/path:/container/path"),
        ("/a:/b:ro:x", "write /host/path:/container/path"),
        ("/a:/b:roo", "did you mean 'ro'"),
        ("./a:/b", "must be an absolute path on the host"),
    ],
)
def test_a_wrong_mount_is_refused_with_what_to_write(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse_mount(text)


def test_an_own_mount_stands_in_for_the_default_in_its_place() -> None:
    """A bind of /dev must stay before /dev/pts, or it would hide it."""
    own = bind("/dev", "/dev", "rbind")

    merged = merge(default_mounts(), [own])

    assert [each["destination"] for each in default_mounts()] == [each["destination"] for each in merged]
    assert own == merged[1]


def test_outer_mounts_come_before_those_inside_them() -> None:
    merged = merge([], [bind("/x", "/a/b/c"), bind("/y", "/a"), bind("/z", "/a/b")])

    assert [each["destination"] for each in merged] == ["/a", "/a/b", "/a/b/c"]


def test_two_mounts_on_one_path_are_refused() -> None:
    with pytest.raises(SpecError, match="two mounts on /a"):
        merge([], [bind("/x", "/a"), bind("/y", "/a/")])
