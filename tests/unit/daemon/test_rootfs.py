"""Files of a root filesystem are read as the container would see them, and nothing outside is."""

import os
from pathlib import Path

import pytest

from daemon.rootfs import passwd_and_group, read_rootfs_file


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A root with /etc/passwd, beside a file that is none of its business."""
    (tmp_path / "secret").write_text("host")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("inside")
    return root


def test_a_plain_file(rootfs: Path) -> None:
    assert read_rootfs_file(str(rootfs), "/etc/passwd") == "inside"
    assert read_rootfs_file(str(rootfs), "etc//./passwd") == "inside"


def test_an_absolute_link_starts_at_the_root_filesystem(rootfs: Path) -> None:
    """Debian-like images have /etc/mtab → /proc/mounts and the like."""
    (rootfs / "usr").mkdir()
    (rootfs / "usr/passwd").symlink_to("/etc/passwd")
    (rootfs / "etc2").symlink_to("/etc")

    assert read_rootfs_file(str(rootfs), "/usr/passwd") == "inside"
    assert read_rootfs_file(str(rootfs), "/etc2/passwd") == "inside"


def test_dots_stop_at_the_root(rootfs: Path) -> None:
    (rootfs / "up").symlink_to("../../../../etc")

    assert read_rootfs_file(str(rootfs), "/../../etc/passwd") == "inside"
    assert read_rootfs_file(str(rootfs), "/up/passwd") == "inside"


@pytest.mark.parametrize("target", ["../secret", "../../secret", "/secret", "{host}/secret"])
def test_no_link_leads_out(rootfs: Path, target: str) -> None:
    (rootfs / "out").symlink_to(target.replace("{host}", str(rootfs.parent)))

    with pytest.raises(FileNotFoundError):
        read_rootfs_file(str(rootfs), "/out")


def test_a_loop_of_links_ends(rootfs: Path) -> None:
    (rootfs / "a").symlink_to("b")
    (rootfs / "b").symlink_to("a")

    with pytest.raises(OSError, match="Too many levels"):
        read_rootfs_file(str(rootfs), "/a")


def test_only_regular_files_of_a_sensible_size(rootfs: Path) -> None:
    """A FIFO would block for ever, a device might do worse."""
    os.mkfifo(rootfs / "fifo")
    for path in ("/fifo", "/etc"):
        with pytest.raises(ValueError, match="no regular file"):
            read_rootfs_file(str(rootfs), path)
    with pytest.raises(ValueError, match="longer than 3 bytes"):
        read_rootfs_file(str(rootfs), "/etc/passwd", limit_bytes=3)


def test_a_file_is_no_directory(rootfs: Path) -> None:
    with pytest.raises(NotADirectoryError):
        read_rootfs_file(str(rootfs), "/etc/passwd/x")


def test_missing_user_files_are_empty(rootfs: Path) -> None:
    assert passwd_and_group(str(rootfs)) == ("inside", "")


def test_bytes_that_are_no_text_do_not_matter(rootfs: Path) -> None:
    (rootfs / "etc/group").write_bytes(b"a\xff:x:1:")

    assert read_rootfs_file(str(rootfs), "/etc/group") == "a\udcff:x:1:"
