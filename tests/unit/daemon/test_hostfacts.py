"""What the machine has, as a spec needs it."""

import os
from pathlib import Path

from daemon import hostfacts


def test_capabilities_are_read_from_the_bounding_set(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000021\n")

    assert hostfacts.capabilities(str(status)) == ("CAP_CHOWN", "CAP_KILL")


def test_ours_are_capabilities() -> None:
    """Whatever the machine grants, these are names the table knows."""
    assert set(hostfacts.capabilities()) <= set(hostfacts.spec_caps.ALL)


def test_a_device_node_as_an_oci_device() -> None:
    made = hostfacts.device("/dev/null")

    assert made is not None
    assert {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666}.items() <= made.items()


def test_what_is_no_device_is_none(tmp_path: Path) -> None:
    assert hostfacts.device(str(tmp_path)) is None
    assert hostfacts.device(str(tmp_path / "missing")) is None


def test_the_hosts_devices_leave_out_what_a_container_has_of_its_own() -> None:
    paths = [each["path"] for each in hostfacts.devices()]

    assert set(paths) & {"/dev/null", "/dev/tty", "/dev/ptmx", "/dev/console"} == set()
    assert not any(path.startswith(("/dev/pts/", "/dev/shm/")) for path in paths)


def test_only_network_files_that_exist() -> None:
    assert all(os.path.exists(path) for path in hostfacts.host_network_files())
