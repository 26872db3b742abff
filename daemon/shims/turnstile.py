"""So many at once, but nobody waits long behind somebody who does not move."""

import trio


class Turnstile:
    """Lets ``places`` tasks through at once; a place is free again when it is left or after ``patience_s``.

    Asking a hundred shims at once would make all of them slow; a stopped one must not hold its place for its budget.
    """

    def __init__(self, places: int, patience_s: float) -> None:
        self._places = trio.Semaphore(places)
        self._patience_s = patience_s

    async def enter(self, nursery: trio.Nursery) -> "Place":
        """Wait for a place; the nursery runs its timer."""
        await self._places.acquire()
        place = Place(self._places)
        nursery.start_soon(place.leave_after, self._patience_s)
        return place


class Place:
    """One place, given back once."""

    def __init__(self, places: trio.Semaphore) -> None:
        self._places = places
        self._left = trio.Event()

    def leave(self) -> None:
        """Give it back. Idempotent."""
        if not self._left.is_set():
            self._left.set()
            self._places.release()

    async def leave_after(self, seconds: float) -> None:
        try:
            with trio.move_on_after(seconds):
                await self._left.wait()
        finally:
            self.leave()
