"""What the tests of the daemon and those of shimctl start from. Where more is needed a file has its own `box`."""

from collections.abc import Iterator

import pytest

from tests.support.ctlbox import CtlBox
from tests.support.daemonbox import DaemonBox


@pytest.fixture
def box() -> Iterator[DaemonBox]:
    with DaemonBox() as made:
        yield made


@pytest.fixture(scope="module")
def ctlbox() -> Iterator[CtlBox]:
    """One for all tests of a file: they leave nothing in it."""
    with CtlBox() as made:
        yield made
