"""The differences we mean. Each says what the Go shim does, what ours does, and why ours is better.

A difference that is no longer there fails the suite too, so that this table stays true.
"""

from tests.interop.compare import Accepted

ACCEPTED: tuple[Accepted, ...] = ()
