"""Code that shims run is put together: the same functions, with copies of their code that lie side by side."""

from shim import policy
from shim.keeper import memory
from shim.keeper.memory import gather


def test_gathered_functions_are_the_same_with_other_code() -> None:
    functions = (memory._copy, memory.fill_holes, policy.Backoff.pause_s)
    before = [function.__code__ for function in functions]

    count = gather(set(before), [])

    assert count >= len(functions)  # code of copies that other tests load is equal, and is gathered with it
    for function, code in zip(functions, before, strict=True):
        assert function.__code__ is not code
        assert function.__code__ == code
    assert policy.Backoff(1.0, 8.0, 10.0).pause_s(1) == 2.0


def test_functions_inside_of_functions_are_copied_with_them() -> None:
    def outer() -> object:
        return lambda: 7

    copy = memory._copy(outer.__code__, {})

    (inner,) = (const for const in copy.co_consts if isinstance(const, type(copy)))
    assert inner == next(const for const in outer.__code__.co_consts if isinstance(const, type(copy)))
    assert all(inner is not const for const in outer.__code__.co_consts)
