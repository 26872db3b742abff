"""How the template's memory is laid out, so that shims share more of it. bench/keeper.py says what each step saves."""

import gc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import CodeType, FunctionType

# Objects up to 512 bytes lie in pools of one size class each (CPython, Objects/obmalloc.c); a bytes object of n
# characters is 33 + n bytes long. Larger ones, and all that is no object, come from malloc(3).
POOL_BYTES, CLASS_BYTES, LARGEST_CLASS = 16384, 16, 512
BYTES_OVERHEAD = 33
FILLED_MAX = 20_000
HEAP_BLOCKS = (*range(120_000, 4096, -4096), *range(4096, LARGEST_CLASS, -16))
# prctl(2), PR_SET_MEMORY_MERGE: Linux 6.4.
PR_SET_MEMORY_MERGE = 67


def settle() -> "list[bytes]":
    """Leave the memory as it is to be forked from; what is returned has to be kept. Order: the last thing before it.

    A shim that finds no hole between our objects puts its own where nobody else's are: fewer shared pages are written.
    """
    gc.collect()
    kept = fill_holes()
    gc.collect()
    gc.freeze()  # the collector would write into every object it looks at
    return kept


def fill_holes() -> "list[bytes]":
    """Use up the free blocks between objects; the fillers are returned."""
    kept: list[bytes] = []
    for size in range(48, LARGEST_CLASS + 1, CLASS_BYTES):
        _fill_class(size, kept)
    probe = bytes(HEAP_BLOCKS[0])
    top = id(probe)  # nothing in the heap had room for it
    del probe
    for size in HEAP_BLOCKS:
        while len(kept) < FILLED_MAX:
            block = bytes(size - BYTES_OVERHEAD - 8)
            if id(block) >= top:
                break
            kept.append(block)
    return kept


def _fill_class(size: int, kept: "list[bytes]") -> None:
    """Until blocks come one after the other, a pool's length of them: then the pool is a new one."""
    previous = in_a_row = 0
    for _ in range(FILLED_MAX):
        block = bytes(size - BYTES_OVERHEAD - 8)
        kept.append(block)
        in_a_row = in_a_row + 1 if id(block) == previous + size else 0
        previous = id(block)
        if in_a_row >= POOL_BYTES // size - 6:
            break


def gather(codes: "Iterable[CodeType]", kept: "list[bytes]") -> int:
    """Have the code that shims run lie together, in copies made behind everything else; the value: how many functions.

    Code is written to while it runs. As imported, what runs lies between what does not, and takes its pages along. Now
    it lies in the order of ``codes``: what every shim runs first, what only some do last.
    Order: before the rehearsal, for the copies have to learn all anew, and after the holes are filled, in which they
    would lie apart again; the fillers are added to ``kept``. The cache of attributes is emptied, too: each entry names
    an attribute looked up some time, and a shim that needs its place writes where that name lies.
    """
    functions: dict[CodeType, list[FunctionType]] = {}
    for function in _functions():
        functions.setdefault(function.__code__, []).append(function)
    gc.collect()
    kept += fill_holes()
    copies: dict[CodeType, CodeType] = {}
    count = 0
    for code in codes:
        for function in functions.pop(code, ()):
            function.__code__ = _copy(code, copies)
            count += 1
    sys._clear_type_cache()
    return count


def _copy(code: "CodeType", copies: "dict[CodeType, CodeType]") -> "CodeType":
    """With the functions defined in it."""
    found = copies.get(code)
    if found is None:
        kind = type(code)
        consts = tuple(_copy(each, copies) if isinstance(each, kind) else each for each in code.co_consts)
        found = copies[code] = code.replace(co_consts=consts)
    return found


def _functions() -> "Iterator[FunctionType]":
    """Every function and method in a module."""
    kind: type[FunctionType] = type(_functions)  # type: ignore[assignment]  # typeshed: a Callable
    for module in tuple(sys.modules.values()):
        for value in tuple(getattr(module, "__dict__", {}).values()):
            if isinstance(value, kind):
                yield value
            elif isinstance(value, type):
                for member in tuple(value.__dict__.values()):
                    found = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
                    if isinstance(found, kind):
                        yield found


def merge_equal_pages() -> str:
    """Let the kernel make pages one that are equal, ours and our shims'; what came of it, for the log.

    Only where its administrator has it run (/sys/kernel/mm/ksm/run): siblings that did the same are equal for the most
    part, and what differs is copied again when written to. Passed on by fork. Source: PR_SET_MEMORY_MERGE(2const).
    """
    import ctypes  # python-prctl does not know this one

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) != 0:
        return f"equal pages are not merged: errno {ctypes.get_errno()}"
    try:
        with open("/sys/kernel/mm/ksm/run", encoding="ascii") as file:
            is_running = file.read().strip() == "1"
    except OSError:
        is_running = False
    return "equal pages are merged" if is_running else "equal pages would be merged, but ksm does not run on this host"
