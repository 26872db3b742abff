"""THE table of a container's life: what may happen, and what may be asked. Imports nothing.

Rows are states, columns are facts in the past tense; a fact without a cell is a bug in whoever reported it.
"""

CREATING = "creating"
CREATED = "created"
RUNNING = "running"
PAUSED = "paused"
STOPPED = "stopped"
DELETED = "deleted"

FACTS = ("created", "create_failed", "started", "start_failed", "paused", "resumed", "exited", "deleted")

# An exit seen while CREATING is parked: told after `created`, so that observers see create < exit.
PARKED = "parked"

TRANSITIONS = {
    CREATING: {"created": CREATED, "create_failed": STOPPED, "exited": PARKED},
    CREATED: {"started": RUNNING, "start_failed": CREATED, "exited": STOPPED},
    RUNNING: {"paused": PAUSED, "exited": STOPPED},
    PAUSED: {"resumed": RUNNING, "exited": STOPPED},
    STOPPED: {"deleted": DELETED},
    DELETED: {},
}

# Which requests a state allows. Delete of CREATED kills first; its namespaces are there already, so execs run in them.
REQUESTS = {
    "start": (CREATED,),
    "kill": (CREATED, RUNNING, PAUSED),
    "exec": (CREATED, RUNNING),
    "pause": (RUNNING,),
    "resume": (PAUSED,),
    "update": (CREATED, RUNNING, PAUSED),
    "checkpoint": (RUNNING, PAUSED),
    "delete": (STOPPED, CREATED),
}


class IllegalFact(Exception):
    """A fact the table has no cell for: a bug in the reporter."""


class Lifecycle:
    """Where one container (or exec, which has no pause) stands. Owns the state and a parked exit; nothing else."""

    __slots__ = ("parked", "state")

    def __init__(self, state: str = CREATING) -> None:
        self.state = state
        self.parked = False

    def may(self, request: str) -> bool:
        """Whether the request is allowed now."""
        return self.state in REQUESTS[request]

    def record(self, fact: str) -> str:
        """Move by a fact and answer with the new state; a parked exit leaves CREATING where it is.

        Raises: IllegalFact when the table has no cell for it.
        """
        target = TRANSITIONS[self.state].get(fact)
        if target is None:
            raise IllegalFact(f"fact {fact!r} cannot happen in state {self.state!r}")
        if target == PARKED:
            self.parked = True
            return self.state
        self.state = target
        return target
