"""What several kernel tests start from."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.limited import Container


@pytest.fixture
def make_container() -> Iterator[Any]:
    made: list[Container] = []

    def make(script: str, **options: int) -> Container:
        made.append(Container(script, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
