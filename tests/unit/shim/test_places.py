"""Places in logs and in output: found again, or known to be gone."""

import os
from pathlib import Path

import pytest

from shim.streams.backlog import Backlog
from shim.streams.jsonlines import STDERR, STDOUT
from shim.streams.places import OUTPUT_FIELDS, Past, find, output_message, output_of, output_place, output_since
from shim.streams.spool import ROLL_BYTES, Book, Spool, read_counts
from ttrpc.api import shim as api
from ttrpc.api.logplace import log_place
from ttrpc.envelope import bytes_field_head


class Log:
    """A log that is written by the test."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.size_bytes = 0

    @property
    def inode(self) -> int:
        return os.fstat(self.fd).st_ino

    def fileno(self) -> int:
        return self.fd

    def write(self, data: bytes) -> None:
        os.pwrite(self.fd, data, self.size_bytes)
        self.size_bytes += len(data)

    def rotate(self, oldest: int) -> None:
        os.close(self.fd)
        for age in range(oldest, 0, -1):
            if os.path.exists(f"{self.path}.{age}"):
                os.rename(f"{self.path}.{age}", f"{self.path}.{age + 1}")
        os.rename(self.path, f"{self.path}.1")
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT)
        self.size_bytes = 0


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


def read_all(past: Past) -> bytes:
    return b"".join(iter(past.read, b""))


def test_a_place_is_found_over_rotations_and_everything_after_it_read(log: Log) -> None:
    log.write(b"told, untold ")
    place = log_place(log.fd, 5)
    log.rotate(0)
    log.write(b"more ")
    past = Past(log, place)
    assert past.read() == b" untold "
    log.rotate(1)
    log.write(b"and more")

    assert read_all(past) == b"more and more"
    assert not past.missed
    log.write(b"!")
    assert past.read() == b"!"
    assert past.place == log_place(log.fd, log.size_bytes)
    past.close()
    os.close(log.fd)


def test_another_file_of_the_same_inode_is_not_taken_for_it(log: Log) -> None:
    log.write(b"the first words of one")
    place = log_place(log.fd, 22)
    found = find(log.path, place)
    assert found is not None
    os.close(found[1])
    os.pwrite(log.fd, b"another file, as long.", 0)
    assert find(log.path, place) is None
    past = Past(log, place)
    assert past.missed
    assert read_all(past) == b"another file, as long."
    past.close()
    os.close(log.fd)


def test_spools_have_what_came_after_a_place_over_rolls_and_kills(tmp_path: Path) -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    backlog = Backlog(Book(f"{tmp_path}/init", reopens=False))
    said, places = b"", []
    for number in range(ROLL_BYTES // 50_000 * 3):
        data = bytes([number % 256]) * 50_000
        os.write(writing, data)
        told: list[bytes] = []
        assert backlog.take(STDOUT, reading, 1 << 16, told.append) == len(data)
        assert told == [data]
        said += data
        places.append(output_place(backlog.book))
    book = Book(f"{tmp_path}/init", reopens=True)  # a successor's

    assert (book.run, book.spools[STDOUT].count, book.spools[STDERR].count) == (backlog.book.run, len(said), 0)
    kept = []
    for place in places:
        missed, pieces = output_since(book, place)
        rest = b"".join(data for _, data, _ in pieces)
        assert said.endswith(rest)
        assert missed + len(rest) == len(said) - place.stdout
        assert not pieces or pieces[-1][2] == output_place(book)
        kept.append(missed == 0)
    assert kept == sorted(kept)
    assert all(kept[-ROLL_BYTES // 50_000 :])
    for each in (book, backlog.book):
        each.close()
    os.close(reading)
    os.close(writing)


def test_a_note_of_an_older_shim_tells_no_counts(tmp_path: Path) -> None:
    book = Book(f"{tmp_path}/init", reopens=False)
    book.note(1, 2)
    page = os.pread(book.fd, 256, 0)
    assert read_counts(page, 1) == (book.run, 0, 0, 0, 0, 0)
    older = page[:128] + page[128 : 128 + 84] + bytes(44)
    assert read_counts(older, 1) is None
    assert read_counts(page, 2) is None
    book.close()


@pytest.mark.parametrize("place", [None, api.AttachPlace(run=3, stdout=70, stderr=9)])
@pytest.mark.parametrize("stream", [STDOUT, STDERR])
def test_a_piece_of_output_is_the_same_message_however_it_is_made(stream: str, place: "api.AttachPlace | None") -> None:
    whole = output_message(stream, b"some output", place)
    head = api.AttachOutput(place=place).SerializeToString() + bytes_field_head(OUTPUT_FIELDS[stream], 11)
    assert api.AttachOutput.FromString(head + b"some output") == whole
    assert output_of(whole) == (stream, b"some output", place)


def test_a_full_disk_leaves_nothing_of_a_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def full(self: Spool, generation: int, flags: int = 0) -> int:
        opened.append(self._path)
        if len(opened) == 2:
            raise OSError(28, "No space left on device")
        return os.open(f"{self._path}.{generation % 2}", flags | os.O_RDWR | os.O_CREAT, 0o600)

    monkeypatch.setattr(Spool, "_open", full)
    with pytest.raises(OSError, match="No space"):
        Book(f"{tmp_path}/init", reopens=False)
    assert os.listdir(tmp_path) == []
