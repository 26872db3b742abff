"""The count after daemon_storm: records, events, exits and log lines against what the containers wrote themselves."""

import itertools
import os

from bench.ledger import Ledger
from bench.storm import CODES, SHIMD, Follower, Storm, brief_name, long_name, read_events
from ttrpc.api import events, shim, shimd

NEEDED_TOPICS = ("/tasks/create", "/tasks/start", "/tasks/exit")
EXEC_TOPICS = ("/tasks/exec-added", "/tasks/exec-started", "/tasks/exit")


def count(storm: Storm, follower: Follower, pids: dict[str, int]) -> Ledger:
    """Hold every record, event, exit and log line against what the containers wrote themselves."""
    ledger = Ledger()
    longs = [long_name(number) for number in range(storm.sizes["longs"])]
    briefs = [brief_name(number) for number in storm.briefs]
    names = longs + briefs
    codes = {brief_name(n): n % CODES for n in storm.briefs} | {long_name(n): n for n in range(len(longs))}
    exec_codes = {f"exec-{n}": n % CODES for n, _ in storm.execs}
    ended_pids = {name: pid for name, pid in storm.daemon.running().items() if name in pids}
    ledger.account("long-lived under their old pid", pids.items(), ended_pids.items())

    with open(os.path.join(storm.ground.rootfs, "truth", "stop"), "w", encoding="ascii"):
        pass
    for name in longs:
        storm.answered[name] = storm.shimctl("wait", name, codes=range(256)).returncode
    for name in longs + storm.kept:
        storm.logs[name] = storm.shimctl("logs", name).stdout.splitlines()

    began = [(name, line) for name in names for line in storm.truth(name) if line == "began"]
    ledger.account("containers that ran", [(name, "began") for name in names], began)
    execs_began = [name for name in exec_codes for line in storm.truth(name) if line == "began"]
    ledger.account("execs that ran", list(exec_codes), execs_began)
    ledger.account("exit codes told", {**codes, **exec_codes}.items(), storm.answered.items())
    count_exits(ledger, storm, codes, exec_codes)
    count_events(ledger, storm, follower, names)
    count_lines(ledger, storm, longs, briefs, list(exec_codes))
    return ledger


def count_exits(ledger: Ledger, storm: Storm, codes: dict[str, int], exec_codes: dict[str, int]) -> None:
    """Stored exit records: one for each init, one for each exec, with the exact code and a known source."""
    with storm.daemon.api() as client:
        reply = client.call(SHIMD, "Exits", shimd.ExitsRequest(), metadata=storm.daemon.metadata)
    sure = [each for each in reply.exits if each.source != shim.EXIT_SOURCE_UNKNOWN]
    inits = [(each.container_id, each.code) for each in sure if not each.exec_id]
    ledger.account("exit records of containers", codes.items(), inits)
    execs = [(each.container_id, each.code) for each in sure if each.exec_id]
    where = {f"exec-{number}": container for number, container in storm.execs}
    ledger.account("exit records of execs", [(where[name], code) for name, code in exec_codes.items()], execs)


def count_events(ledger: Ledger, storm: Storm, follower: Follower, names: list[str]) -> None:
    """Stored events: each step of each container and exec once; the follower saw exactly what is stored."""
    stored = list(read_events(storm.daemon))
    tasks = [(record.topic, *task_of(record)) for record in stored if record.topic.startswith("/tasks/")]
    inits = [(topic, name) for topic, name, exec_id in tasks if not exec_id and topic in NEEDED_TOPICS]
    ledger.account("events of containers", [(topic, name) for name in names for topic in NEEDED_TOPICS], inits)
    execs = [(topic, name) for topic, name, exec_id in tasks if exec_id]
    ledger.account("events of execs", [(topic, name) for _, name in storm.execs for topic in EXEC_TOPICS], execs)
    created = [containers_of(record) for record in stored if record.topic == "/containers/create"]
    ledger.account("events of records created", names, created)
    seen = [record.seq for record in follower.records]
    ledger.account("events at a follower", [r.seq for r in stored if r.seq <= follower.cursor], seen)
    ledger.account("events out of order, or gaps told", [], out_of_order(follower))


def out_of_order(follower: Follower) -> list[str]:
    """Where the follower's numbers do not rise, and whether it was told of a gap."""
    seqs = [record.seq for record in follower.records]
    wrong = [f"{left} before {right}" for left, right in itertools.pairwise(seqs) if left >= right]
    return wrong + (["a gap"] if follower.is_gapped else [])


def task_of(record: "shimd.EventRecord") -> tuple[str, str]:
    """Container and exec id of a task event; an exit of init carries the container's id in both fields."""
    name = record.event.type_url.rpartition(".")[2]
    event = getattr(events, name).FromString(record.event.value)
    exec_id = getattr(event, "exec_id", "")
    if name == "TaskExit" and event.id != event.container_id:
        exec_id = event.id
    return event.container_id, exec_id


def containers_of(record: "shimd.EventRecord") -> str:
    """The id in a container event."""
    event: events.ContainerCreate = events.ContainerCreate.FromString(record.event.value)
    return event.id


def count_lines(ledger: Ledger, storm: Storm, longs: list[str], briefs: list[str], execs: list[str]) -> None:
    """Log lines in their order: a line's key is its text and its place."""
    expected: list[tuple[int, str]] = []
    for name in longs:
        written = storm.truth(f"{name}.lines")
        expected += [(n, f"{name} {n}") for n in range(int(written[0]) if written else 0)]
    for name in briefs:
        expected += [(n, f"{name} {n}") for n in range(storm.sizes["lines"])]
    found = [(n, line) for name in longs + briefs for n, line in enumerate(storm.logs.get(name, []))]
    ledger.account("log lines in their place", expected, found)
    said = [line for name in execs for line in storm.logs.get(name, [])]
    ledger.account("output of execs", [f"{name} says" for name in execs], said)
