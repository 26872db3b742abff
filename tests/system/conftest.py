"""What the tests of the daemon start from; those of shimctl have a box of their own by the same name."""

from collections.abc import Iterator

import pytest

from tests.support.daemonbox import DaemonBox


@pytest.fixture
def box() -> Iterator[DaemonBox]:
    with DaemonBox() as made:
        yield made
