"""containerd's filter language, as clients write it."""

import pytest

from daemon import filters
from ttrpc.errors import StatusError
from ttrpc.status import Code

EVENT = {
    ("namespace",): "moby",
    ("topic",): "/tasks/exit",
    ("event", "container_id"): "c1",
    ("labels", "my.label"): "a,b",
    ("id",): "web-1",
}


def matches(text: str) -> bool:
    return filters.parse(text)(lambda path: EVENT.get(tuple(path)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("namespace==moby", True),
        ("namespace==k8s.io", False),
        ("namespace!=k8s.io", True),
        ("missing!=x", True),  # a field that is not there is not x
        ("missing==x", False),
        ("namespace==moby,topic~=|^/tasks/|", True),  # dockerd's own
        ("namespace==moby,topic~=|^/images/|", False),
        ('topic=="/tasks/exit"', True),
        ("topic=='/tasks/exit'", True),
        ("topic==/tasks/exit", True),  # a slash is no quote but after ~=
        (r"topic~=/^\/tasks\/(exit|oom)$/", True),
        ("topic~=exit", True),  # anywhere
        ('topic~="^exit"', False),
        ("event.container_id==c1", True),
        ('"event".container_id==c1', True),
        ('labels."my.label"=="a,b"', True),
        ("labels.'my.label'", True),  # there at all
        ("labels.other", False),
        ("id~=web-[0-9]+", True),
        (r'id~="web-\\d"', False),  # within quotes the expression's backslashes are its own
        (r'id~="web-\d"', True),
    ],
)
def test_selectors(text: str, expected: bool) -> None:
    """Each operator, each quote, each kind of field path."""
    assert matches(text) is expected


def test_any_of_several_filters_is_enough() -> None:
    """Within a filter all selectors must hold; between filters one is enough; no filter matches everything."""
    lookup = {("id",): "a"}
    either = filters.parse_all(["id==b", "id==a"])
    assert either(lambda path: lookup.get(tuple(path)))
    assert not filters.parse_all(["id==b", "id==c"])(lambda path: lookup.get(tuple(path)))
    assert filters.parse_all([])(lambda path: None)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('topic=="/tasks', "at 7: the quote"),
        ("==x", "at 0: expected the name of a field"),
        ("topic~=|(|", "regular expression"),
        ("a==b,", "expected the name"),
        ('a=="b"c', "expected ','"),
    ],
)
def test_what_cannot_be_read_names_the_place(text: str, place: str) -> None:
    """A bad filter is the caller's error and says where it is bad."""
    with pytest.raises(StatusError) as caught:
        filters.parse(text)
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert place in caught.value.message
