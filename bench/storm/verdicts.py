"""What became of one container, held against what it wrote about itself and what was done to it."""

import os
import shutil
import signal
import time
from collections import Counter

from bench.storm import plans
from bench.storm.field import Field
from bench.storm.plans import Life
from bench.storm.truth import Log
from shim.core import pidfds
from ttrpc.api import shim

UNHELD_S = 15.0  # between the death of a keeper and an end that nobody held on to: the successor may be slow
TERMINAL_BYTES = 1 << 17  # held by a terminal and the FIFO behind it, which has room for half as much
SETTLE_S = 30.0  # for what comes after an exit was told: the rest of a log, the event at a subscriber

EXEC_TOPICS = ("/tasks/exec-added", "/tasks/exec-started", "/tasks/exit")
INIT_TOPICS = ("/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")
BEFORE_A_CREATE_AGAIN = {"/tasks/create", "/tasks/exit", "/tasks/delete"}


def is_hung_up(field: Field, life: Life) -> bool:
    """Whether its terminal closed, with shim and keeper, before its script began: runc's process ends by SIGHUP then.

    Once it runs the script goes on, and it has said so then. Only a keeper and a shim hold a terminal; see
    shim/SHIM.md, "Successors".
    """
    if (
        life.log != plans.TERMINAL
        or not field.keeper_deaths
        or not field.follower.wait_for(life.name, "/tasks/exit", 5)
    ):
        return False
    return not field.truth.told(life.name)


def look_at_status(field: Field, life: Life, answered: int) -> None:
    """What Wait said and what is on record, against the code it ended with."""
    tally, name = field.tally, life.name
    if not field.follower.wait_for(name, "/tasks/exit", SETTLE_S):
        field.fail("events_lost", name, f"{name}: its exit was never told")
        return
    record = field.follower.exits[name, ""][-1]
    if record.source == shim.EXIT_SOURCE_UNKNOWN:
        tally.add("statuses_unknown")
        if pidfds.keeps_exit_status():
            field.fail("statuses_wrong", name, f"{name}: unknown, on a kernel which keeps exit statuses")
        else:
            tally.unknown.append(f"{name}: this kernel keeps no exit status of a process somebody else reaped")
        return
    wanted = 128 + signal.SIGKILL if life.end == plans.KILL else life.code
    found = 128 + record.signal if record.HasField("signal") else record.code
    if found == answered == wanted:
        tally.add("statuses_exact")
        tally.add(f"statuses_by_{shim.ExitSource.Name(record.source).removeprefix('EXIT_SOURCE_').lower()}")
    else:
        words = f"{name} ended with {wanted}; on record {found}, answered {answered}"
        field.fail("statuses_wrong", name, words)


def look_at_lines(field: Field, life: Life, seen: int) -> None:
    """Its log, line by line; it may still be written when the exit is told, for a moment."""
    name, tally = life.name, field.tally
    path, is_json = field.log_path(name), life.log != plans.RAW
    written = None if life.end == plans.KILL else field.truth.lines(name)
    wanted = seen if written is None else written
    kind = "terminal_lines" if life.log == plans.TERMINAL else "lines"
    ends_at = time.monotonic() + SETTLE_S
    log = Log(path, name, is_json=is_json)
    hung_up_at = field.truth.hung_up_at(name) if life.log == plans.TERMINAL and field.keeper_deaths else None
    while len(log.numbers) < wanted and time.monotonic() < ends_at and hung_up_at is None:
        time.sleep(0.1)
        log = Log(path, name, is_json=is_json)
    found = Counter(log.numbers)
    if written is None:  # killed at any moment: a beginning of its lines, all that were there before among them
        wanted = max(seen, max(found, default=-1) + 1)
    lost = [number for number in range(wanted) if number not in found]
    doubled = sum(count - 1 for count in found.values())
    is_ordered = log.numbers == sorted(log.numbers)
    strange = log.strange
    if (life.end == plans.KILL or hung_up_at is not None) and strange and strange[-1].startswith("unfinished"):
        strange = strange[:-1]  # cut in the middle of a write
    tally.add(f"{kind}_expected", wanted)
    tally.add(f"{kind}_found", len(log.numbers))
    where = f"{name} ({life.log}{', rotated' if life.is_rotated else ''})"
    is_end = lost == list(range(wanted - len(lost), wanted))
    if lost and is_end and (is_hung_up_by(hung_up_at, lost[0], name) or is_unheld(field, name, "")):
        tally.add(f"{kind}_unheld", len(lost))
        tally.add(f"{kind}_expected", -len(lost))
    elif lost:
        field.fail("lines_lost", name, f"{where}: {len(lost)} of {wanted}, from {lost[0]} to {lost[-1]}", len(lost))
    elif strange or not is_ordered:
        field.fail("lines_strange", name, f"{where}: ordered {is_ordered}, {strange[:3]}", max(1, len(strange)))
    if doubled:
        field.fail("lines_doubled", name, f"{where}: {doubled} of {wanted}", doubled)
    if life.end != plans.KILL and field.truth.told(name) != ["began"]:
        field.fail("runs_wrong", name, f"{name}: {field.truth.told(name)}")
    if name not in field.kept:
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)


def is_hung_up_by(line: int | None, lost: int, name: str) -> bool:
    """Whether the first line that is lost was in the terminal, or not even written, when that hung up. Pure.

    What was in a terminal goes with it, and what was lifted from it with the FIFO.
    """
    return line is not None and (line - lost) * len(f"{name} {line}\r\n") <= TERMINAL_BYTES


def is_unheld(field: Field, container: str, exec_id: str) -> bool:
    """Whether a process ended while neither a shim nor a keeper of its lived: then nobody held its pipe.

    The kernel frees a pipe with what is in it once its last end is closed; see shim/SHIM.md, "Successors".
    """
    record = field.follower.exits[container, exec_id][-1]
    if record.source == shim.EXIT_SOURCE_WAITID:
        return False  # its shim lived, and passes on what was written before it tells the end
    return any(abs(at - record.exited_at.seconds) < UNHELD_S for at in tuple(field.keeper_deaths))


def look_at_exec(field: Field, life: Life, number: int) -> None:
    """An exec's record, output, and that it ran once."""
    name, tally, code = life.exec_name(number), field.tally, life.acts[number].code
    records = field.follower.exits[life.name, name]
    ends_at = time.monotonic() + SETTLE_S
    while not records and time.monotonic() < ends_at:
        time.sleep(0.05)
        records = field.follower.exits[life.name, name]
    if not records:
        field.fail("events_lost", life.name, f"{name}: its exit was never told")
        return
    record = records[-1]
    if record.source == shim.EXIT_SOURCE_UNKNOWN:
        tally.add("exec_statuses_unknown")
        if {plans.KEEPER, plans.SHIM} <= field.kinds:
            tally.unknown.append(
                f"{name}: it ended while neither its shim nor a keeper above it lived, and was not pinned yet"
            )
        else:
            field.fail("exec_statuses_wrong", life.name, f"{name} ended with {code}; unknown, though no keeper died")
    elif record.code == code and not record.HasField("signal"):
        tally.add("exec_statuses_exact")
    else:
        field.fail("exec_statuses_wrong", life.name, f"{name} ended with {code}; on record: {record}")
    path = field.log_path(name)
    log = Log(path, name, is_json=False)
    tally.add("lines_expected")
    said = [line for line in log.strange if line == f"{name} says"]
    tally.add("lines_found", len(said))
    if not log.strange and is_unheld(field, life.name, name):
        tally.add("lines_unheld")
        tally.add("lines_expected", -1)
    elif len(said) != 1 or len(log.strange) != 1:
        fault = "lines_lost" if not said else "lines_doubled" if len(said) > 1 else "lines_strange"
        field.fail(fault, life.name, f"{name}: its output is {log.strange}")
    if field.truth.told(name) != ["began"]:
        field.fail("runs_wrong", life.name, f"{name}: {field.truth.told(name)}")
    field.truth.forget(name)
    shutil.rmtree(os.path.dirname(path), ignore_errors=True)


def look_at_events(field: Field, life: Life, executed: list[int], switches: int) -> None:
    """Each step told once, in order. A create that was undone and made again may have been told before."""
    name = life.name
    if not field.follower.wait_for(name, "/tasks/delete", SETTLE_S):
        field.fail("events_lost", name, f"{name}: its delete was never told")
        return
    told = [(topic, exec_id) for topic, exec_id, _ in field.follower.topics.pop(name)]
    last = max(index for index, each in enumerate(told) if each[0] == "/tasks/create")
    before, told = told[:last], told[last:]
    expected = Counter((topic, "") for topic in INIT_TOPICS)
    for number in executed:
        expected.update((topic, life.exec_name(number)) for topic in EXEC_TOPICS)
    expected.update({("/tasks/paused", ""): switches, ("/tasks/resumed", ""): switches})
    expected += Counter()
    field.tally.add("events_expected", expected.total())
    field.tally.add("events_found", len(told))
    field.tally.add("creates_again", sum(topic == "/tasks/create" for topic, _ in before))
    lost, more = expected - Counter(told), Counter(told) - expected
    if lost:
        field.fail("events_lost", name, f"{name}: {dict(lost)}", lost.total())
    if more:
        field.fail("events_doubled", name, f"{name}: {dict(more)}", more.total())
    if not {topic for topic, _ in before} <= BEFORE_A_CREATE_AGAIN or not is_in_order(told):
        field.fail("events_strange", name, f"{name}: {before} then {told}")
    for key in [key for key in field.follower.exits if key[0] == name]:
        del field.follower.exits[key]


def is_in_order(told: list[tuple[str, str]]) -> bool:
    """create < start < exit < delete; of an exec added < started < exit, and that before init's exit. Pure."""
    at = {each: index for index, each in reversed(list(enumerate(told)))}
    inits = [at[topic, ""] for topic in INIT_TOPICS if (topic, "") in at]
    execs = {exec_id for _, exec_id in told if exec_id}
    rows = [[at[topic, exec_id] for topic in EXEC_TOPICS if (topic, exec_id) in at] for exec_id in execs]
    end = at.get(("/tasks/exit", ""), len(told))
    return inits == sorted(inits) and all(row == sorted(row) and row[-1] < end for row in rows if row)
