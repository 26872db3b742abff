"""The differences we mean. Each says what the Go shim does, what ours does, and why ours is better.

A difference that is no longer there fails the suite too, so that this table stays true.
"""

from tests.interop.compare import Accepted

REFUSED = r'(UNKNOWN: |.*"err": "ctr: )(failed to delete task: )?cannot {what} .*'


def in_own_words(scenario: str, label: str, what: str) -> Accepted:
    """A refusal of the same class in other words."""
    why = "the same class; ours always says `cannot DO a STATE container`, where Go has a sentence for each state"
    return Accepted(scenario, label, REFUSED.format(what=what), REFUSED.format(what=what), why)


def said_twice(scenario: str, label: str) -> Accepted:
    """runc's last words, on the container's stderr too."""
    why = (
        "the container is given the client's own FIFO, so that its output flows without the shim and survives it; "
        "runc has that stderr until it becomes the container, and says its last words there as well"
    )
    go, ours = r'\{{"err": "ctr: {}, "exit": 1\}}', r'\{{"err": "runc create failed: .*\\nctr: {}, "exit": 1\}}'
    words = r"failed to create shim task: OCI runtime create failed: .*"
    return Accepted(scenario, label, go.format(words), ours.format(words), why)


BLAME = "the caller's mistake is told as one, with what is allowed"
NEVER = r"\{\"exited_at\": \"<never>\", \"pid\": \"<pid>\"\}"
KILLED = r"\{\"exit_status\": 137, \"exited_at\": \"<time>\", \"pid\": \"<pid>\"\}"

WORDS = (
    in_own_words("exec_where_none_may_be", "exec (paused|dead)/e1", "exec"),
    in_own_words("pause_and_resume", "resume what is not paused", "resume"),
    in_own_words("created_only", "Tasks.Pause c1", "pause"),
    in_own_words("created_only", "Tasks.Resume c1", "resume"),
    in_own_words("wire_errors", "Exec when stopped", "exec"),
    said_twice("run_a_missing_program", "run c1"),
    said_twice("run_what_cannot_be_run", "run c[1235]"),
    said_twice("a_hook_that_fails", "run"),
    Accepted(
        "update",
        "Update with what no cgroup takes",
        "UNKNOWN: runc did not terminate successfully: exit status 1: unable to set memory limit.*",
        "UNKNOWN: OCI runtime update failed: unable to set memory limit.*",
        "the form of all other failures of the runtime",
    ),
    Accepted(
        "wire_errors",
        ".*",
        r"(\w+): .*: (not found|already exists)",
        "(NOT_FOUND|ALREADY_EXISTS): .*",
        "the code says the class, which Go says again in words; and CloseIO is refused with NotFound like the others",
    ),
    Accepted(
        "ctr_shim",
        "delete while running",
        ".*NotFound desc = container not created.*",
        ".*Unknown desc = cannot delete a running.*",
        "ctr names no container here; a shim that has exactly one knows which is meant",
    ),
    Accepted(
        "calls_of_a_failure",
        "run: call Delete .*",
        r"\[\"NOT_FOUND: container not created: not found\"\]",
        r"\[\"NOT_FOUND: container not created\"\]",
        "the code says the class, which Go says again in words",
    ),
    Accepted(
        "restart_at_(delete_reply|shutdown_request)",
        "state of c1.*",
        "NOT_FOUND: container not created: not found",
        "NOT_FOUND: container c1 does not exist: it was deleted: not found",
        "it was created once; this is what became of it",
    ),
)

CLASSES = (
    Accepted(
        "kill_with_odd_signals",
        "Kill with (65|4096)",
        "UNKNOWN: .*invalid argument\n: unknown",
        "INVALID_ARGUMENT: signal .*1 to 64.*",
        BLAME,
    ),
    Accepted(
        "log_uri_nobody_knows",
        "run -d c1",
        ".*unknown STDIO scheme gopher: unknown.*",
        ".*unknown scheme 'gopher'; use .*: invalid argument.*",
        BLAME,
    ),
    Accepted(
        "log_uri_nobody_knows",
        "run -d c2",
        ".*failed to start binary process: fork/exec /no/such/logger: no such file or directory.*: unknown.*",
        ".*log program '/no/such/logger': No such file or directory: invalid argument.*",
        BLAME,
    ),
    Accepted(
        "log_uri_nobody_knows",
        "run -d c3",
        ".*mkdir /proc/no-such-folder: no such file or directory: unknown.*",
        ".*/proc/no-such-folder/log: No such file or directory: invalid argument.*",
        BLAME,
    ),
)

FACTS = (
    Accepted(
        "calls_of_a_short_life",
        "the end: exec delete .*",
        r".*\\\"exit_status\\\": 137.*",
        r".*\\\"exit_status\\\": 3.*",
        "the real status, as the bundle has it",
    ),
    Accepted(
        "calls_of_a_long_life",
        "exec of nothing: call Wait .*",
        r".*(\\\"exited_at\\\": \\\"<never>\\\"|no answer yet).*",
        ".*NOT_FOUND: process was deleted before it ran.*",
        "what never ran has not exited with 0",
        always=False,
    ),
    Accepted(
        "calls_of_a_failure",
        "run: exec delete .*",
        r".*\\\"pid\\\": \\\"<pid>\\\".*",
        r"((?!<pid>).)*",
        "a create that failed is undone, and its pid is nobody's any more",
    ),
    Accepted(
        "shim_killed_after_the_exit",
        "events",
        ".*exit c1 = 7.*exit c1 = 137.*delete c1 = 137.*",
        ".*exit c1 = 7.*exit c1 = 7.*delete c1 = 7.*",
        "the real status, as the bundle has it (that the exit is told again is containerd's doing)",
    ),
    Accepted(
        "log_to_a_file",
        "log",
        ".*",
        r"\[\"first\", \"first-error\", \"second\", \"second-error\"\]",
        "the Go shim loses a last line now and then",
        always=False,
    ),
    Accepted(
        "created_only",
        "events",
        ".*exit c1 = 137 without a time.*delete c1 = 0 without a time.*",
        '.*exit c1 = 137.*delete c1 = 137".*',
        "its init was killed by the delete, and that is what its exit says, with the time",
    ),
    Accepted(
        "created_only",
        "Tasks.Delete c1",
        NEVER,
        KILLED,
        "its init was killed by the delete, and that is what its exit says",
    ),
    Accepted(
        "processes",
        "ps of what has ended",
        r"\{\"exit\": 0, \"out\": \"PID    INFO\\n\"\}",
        r"\{\"exit\": 0, \"out\": \"PID +INFO\\n\d+ +-\\n\"\}",
        "containerd 1.7 and later take an empty list after a restart for a leaked shim, and erase the exit status",
    ),
    Accepted(
        "wire_errors",
        "Connect( #2| when stopped)?",
        r"\{\"shim_pid\".*",
        r"\{\"shim_pid\".*, \"version\": \".*\"\}",
        "says which version of the shim is running",
    ),
    Accepted(
        "shim_.*killed.*",
        "left behind",
        "sockets: <socket>",
        "nothing",
        "the socket of a shim that was killed is removed by its `delete`",
        always=False,
    ),
    Accepted("grouped", "shims", "1", "2", "one shim per container: the death of one harms no other"),
    Accepted(
        "many_execs_at_once",
        "outputs that came whole",
        r"\d+",
        "50",
        "the Go shim loses the output of an exec that ends before the client has opened its FIFO",
        always=False,
    ),
    Accepted(
        "(restart|exit|exec_exit|output).*",
        "events lost",
        ".*",
        r"\[\]",
        "the Go shim drops what it has not delivered when it is shut down, and what it tried five times",
        always=False,
    ),
)

ACCEPTED: tuple[Accepted, ...] = (*WORDS, *CLASSES, *FACTS)
