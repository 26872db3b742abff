"""The fuzz target, short and the same each time: seeds, their mutations, and bytes out of nowhere."""

import os
import random
import tracemalloc

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from tests.fuzz import corpus, ttrpc_target
from ttrpc.connection import CALLEE, Connection
from ttrpc.frames import MAX_DATA_BYTES, REQUEST, pack_header

SEEDS = corpus.seeds()


def outcome(data: bytes) -> str:
    """What the target says to these bytes: nothing, if all is well."""
    try:
        ttrpc_target.run(data)
    except BaseException as error:  # noqa: BLE001 - whatever comes out is the finding
        return repr(error)
    return ""


def test_the_committed_corpus_holds_the_seeds() -> None:
    """Findings may be added; `python -m tests.fuzz.corpus` writes the seeds."""
    held = {}
    for name in os.listdir(corpus.CORPUS):
        with open(os.path.join(corpus.CORPUS, name), "rb") as file:
            held[name] = file.read()

    assert {name: held.get(name) for name in SEEDS} == SEEDS
    assert [name for name, data in held.items() if outcome(data)] == []


@pytest.mark.parametrize("name", SEEDS)
def test_mutations_of_each_seed_let_nothing_out(name: str) -> None:
    source, data = random.Random(name), SEEDS[name]
    found = []
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(source.randint(1, 4)):
            at = source.randrange(len(changed))
            kind = source.randrange(3)
            if kind == 0:
                changed[at] = source.randrange(256)
            elif kind == 1 and len(changed) > 3:
                del changed[at]
            else:
                changed[at:at] = changed[at : at + source.randint(1, 12)]
        if words := outcome(bytes(changed)):
            found.append((bytes(changed), words))

    assert found == []


@seed(20240501)
@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_bytes_out_of_nowhere_let_nothing_out(data: bytes) -> None:
    assert outcome(data) == ""


@seed(20240502)
@settings(max_examples=200)
@given(
    st.sampled_from([b"\x01\x04", b"\x05\x02", b"\x02\x01"]),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 7), st.binary(max_size=12)), max_size=12),
)
def test_frames_in_any_order_let_nothing_out(start: bytes, said: list[tuple[int, int, int, bytes]]) -> None:
    assert outcome(start + b"".join(corpus.frame(*part) for part in said)) == ""


def test_frames_that_claim_to_be_huge_cost_no_memory() -> None:
    """256 MiB of them, in reads of 64 KiB, on one connection."""
    callee = Connection(CALLEE)
    length = 64 * MAX_DATA_BYTES
    chunk = bytes(1 << 16)
    tracemalloc.start()
    try:
        refused = callee.receive_bytes(pack_header(length, 1, REQUEST, 0))
        for _ in range(length // len(chunk)):
            refused += callee.receive_bytes(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(refused) == 1
    assert peak < 1 << 20


def test_half_a_frame_costs_no_more_than_its_bytes() -> None:
    """A header alone that announces 4 MiB reserves nothing."""
    connections = []
    tracemalloc.start()
    try:
        for _ in range(100):
            connections.append(Connection(CALLEE))
            assert connections[-1].receive_bytes(pack_header(MAX_DATA_BYTES, 1, REQUEST, 0) + b"x") == []
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 100 * 4096
