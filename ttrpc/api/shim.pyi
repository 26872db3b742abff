import datetime

from google.protobuf import any_pb2 as _any_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExitSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXIT_SOURCE_UNKNOWN: _ClassVar[ExitSource]
    EXIT_SOURCE_WAITID: _ClassVar[ExitSource]
    EXIT_SOURCE_KEEPER: _ClassVar[ExitSource]
    EXIT_SOURCE_PIDFD: _ClassVar[ExitSource]

class LogStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_STREAM_UNSPECIFIED: _ClassVar[LogStream]
    LOG_STREAM_STDOUT: _ClassVar[LogStream]
    LOG_STREAM_STDERR: _ClassVar[LogStream]
EXIT_SOURCE_UNKNOWN: ExitSource
EXIT_SOURCE_WAITID: ExitSource
EXIT_SOURCE_KEEPER: ExitSource
EXIT_SOURCE_PIDFD: ExitSource
LOG_STREAM_UNSPECIFIED: LogStream
LOG_STREAM_STDOUT: LogStream
LOG_STREAM_STDERR: LogStream

class UpgradeRequest(_message.Message):
    __slots__ = ("python", "paths", "dry_run", "patience_ms")
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_MS_FIELD_NUMBER: _ClassVar[int]
    python: str
    paths: _containers.RepeatedScalarFieldContainer[str]
    dry_run: bool
    patience_ms: int
    def __init__(self, python: _Optional[str] = ..., paths: _Optional[_Iterable[str]] = ..., dry_run: _Optional[bool] = ..., patience_ms: _Optional[int] = ...) -> None: ...

class UpgradeResponse(_message.Message):
    __slots__ = ("from_version", "to_version", "pause_us", "check_us", "found")
    FROM_VERSION_FIELD_NUMBER: _ClassVar[int]
    TO_VERSION_FIELD_NUMBER: _ClassVar[int]
    PAUSE_US_FIELD_NUMBER: _ClassVar[int]
    CHECK_US_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    from_version: str
    to_version: str
    pause_us: int
    check_us: int
    found: str
    def __init__(self, from_version: _Optional[str] = ..., to_version: _Optional[str] = ..., pause_us: _Optional[int] = ..., check_us: _Optional[int] = ..., found: _Optional[str] = ...) -> None: ...

class ExitRecord(_message.Message):
    __slots__ = ("container_id", "exec_id", "seq", "pid", "code", "signal", "source", "oom", "core_dumped", "started_at", "exited_at", "pid_start_ticks", "boot_id", "incarnation")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OOM_FIELD_NUMBER: _ClassVar[int]
    CORE_DUMPED_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    EXITED_AT_FIELD_NUMBER: _ClassVar[int]
    PID_START_TICKS_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    seq: int
    pid: int
    code: int
    signal: int
    source: ExitSource
    oom: bool
    core_dumped: bool
    started_at: _timestamp_pb2.Timestamp
    exited_at: _timestamp_pb2.Timestamp
    pid_start_ticks: int
    boot_id: str
    incarnation: str
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., seq: _Optional[int] = ..., pid: _Optional[int] = ..., code: _Optional[int] = ..., signal: _Optional[int] = ..., source: _Optional[_Union[ExitSource, str]] = ..., oom: _Optional[bool] = ..., core_dumped: _Optional[bool] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., exited_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., pid_start_ticks: _Optional[int] = ..., boot_id: _Optional[str] = ..., incarnation: _Optional[str] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("version", "pid", "namespace", "container_id", "bundle", "incarnation", "journal_seq", "acked_seq", "started_at", "log_bytes", "dropped_bytes", "attached", "processes", "runtime", "unwritten_exits", "unwritten_records", "dropped_records", "features", "restart")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_SEQ_FIELD_NUMBER: _ClassVar[int]
    ACKED_SEQ_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    UNWRITTEN_EXITS_FIELD_NUMBER: _ClassVar[int]
    UNWRITTEN_RECORDS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    namespace: str
    container_id: str
    bundle: str
    incarnation: str
    journal_seq: int
    acked_seq: int
    started_at: _timestamp_pb2.Timestamp
    log_bytes: int
    dropped_bytes: int
    attached: int
    processes: int
    runtime: str
    unwritten_exits: int
    unwritten_records: int
    dropped_records: int
    features: _containers.RepeatedScalarFieldContainer[str]
    restart: RestartState
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., namespace: _Optional[str] = ..., container_id: _Optional[str] = ..., bundle: _Optional[str] = ..., incarnation: _Optional[str] = ..., journal_seq: _Optional[int] = ..., acked_seq: _Optional[int] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., log_bytes: _Optional[int] = ..., dropped_bytes: _Optional[int] = ..., attached: _Optional[int] = ..., processes: _Optional[int] = ..., runtime: _Optional[str] = ..., unwritten_exits: _Optional[int] = ..., unwritten_records: _Optional[int] = ..., dropped_records: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., restart: _Optional[_Union[RestartState, _Mapping[str, object]]] = ...) -> None: ...

class SetRestartRequest(_message.Message):
    __slots__ = ("policy", "max_restarts", "stopped", "first_pause_ms", "longest_pause_ms", "reset_after_ms", "budget", "earlier_restarts", "earlier_in_a_row", "decide_now")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MAX_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    FIRST_PAUSE_MS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_PAUSE_MS_FIELD_NUMBER: _ClassVar[int]
    RESET_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    EARLIER_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    EARLIER_IN_A_ROW_FIELD_NUMBER: _ClassVar[int]
    DECIDE_NOW_FIELD_NUMBER: _ClassVar[int]
    policy: str
    max_restarts: int
    stopped: bool
    first_pause_ms: int
    longest_pause_ms: int
    reset_after_ms: int
    budget: int
    earlier_restarts: int
    earlier_in_a_row: int
    decide_now: bool
    def __init__(self, policy: _Optional[str] = ..., max_restarts: _Optional[int] = ..., stopped: _Optional[bool] = ..., first_pause_ms: _Optional[int] = ..., longest_pause_ms: _Optional[int] = ..., reset_after_ms: _Optional[int] = ..., budget: _Optional[int] = ..., earlier_restarts: _Optional[int] = ..., earlier_in_a_row: _Optional[int] = ..., decide_now: _Optional[bool] = ...) -> None: ...

class RestartState(_message.Message):
    __slots__ = ("policy", "max_restarts", "stopped", "restarts", "in_a_row", "next_at", "reason")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MAX_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    IN_A_ROW_FIELD_NUMBER: _ClassVar[int]
    NEXT_AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    policy: str
    max_restarts: int
    stopped: bool
    restarts: int
    in_a_row: int
    next_at: _timestamp_pb2.Timestamp
    reason: str
    def __init__(self, policy: _Optional[str] = ..., max_restarts: _Optional[int] = ..., stopped: _Optional[bool] = ..., restarts: _Optional[int] = ..., in_a_row: _Optional[int] = ..., next_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., reason: _Optional[str] = ...) -> None: ...

class Restarting(_message.Message):
    __slots__ = ("container_id", "restart", "in_a_row", "pause_ms", "at", "reason")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    IN_A_ROW_FIELD_NUMBER: _ClassVar[int]
    PAUSE_MS_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    restart: int
    in_a_row: int
    pause_ms: int
    at: _timestamp_pb2.Timestamp
    reason: str
    def __init__(self, container_id: _Optional[str] = ..., restart: _Optional[int] = ..., in_a_row: _Optional[int] = ..., pause_ms: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., reason: _Optional[str] = ...) -> None: ...

class RestartGaveUp(_message.Message):
    __slots__ = ("container_id", "restarts", "reason", "by_user")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_USER_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    restarts: int
    reason: str
    by_user: bool
    def __init__(self, container_id: _Optional[str] = ..., restarts: _Optional[int] = ..., reason: _Optional[str] = ..., by_user: _Optional[bool] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("after_seq",)
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    after_seq: int
    def __init__(self, after_seq: _Optional[int] = ...) -> None: ...

class JournalRecord(_message.Message):
    __slots__ = ("seq", "at", "topic", "event", "exit", "incarnation")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    seq: int
    at: _timestamp_pb2.Timestamp
    topic: str
    event: _any_pb2.Any
    exit: ExitRecord
    incarnation: str
    def __init__(self, seq: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., topic: _Optional[str] = ..., event: _Optional[_Union[_any_pb2.Any, _Mapping[str, object]]] = ..., exit: _Optional[_Union[ExitRecord, _Mapping[str, object]]] = ..., incarnation: _Optional[str] = ...) -> None: ...

class AckRequest(_message.Message):
    __slots__ = ("seq",)
    SEQ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    def __init__(self, seq: _Optional[int] = ...) -> None: ...

class ExitsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExitsResponse(_message.Message):
    __slots__ = ("exits",)
    EXITS_FIELD_NUMBER: _ClassVar[int]
    exits: _containers.RepeatedCompositeFieldContainer[ExitRecord]
    def __init__(self, exits: _Optional[_Iterable[_Union[ExitRecord, _Mapping[str, object]]]] = ...) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("follow", "tail", "since", "until", "places", "resume")
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    follow: bool
    tail: int
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    places: bool
    resume: LogPlace
    def __init__(self, follow: _Optional[bool] = ..., tail: _Optional[int] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., places: _Optional[bool] = ..., resume: _Optional[_Union[LogPlace, _Mapping[str, object]]] = ...) -> None: ...

class LogPlace(_message.Message):
    __slots__ = ("inode", "offset", "head_bytes", "head_crc")
    INODE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    HEAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    HEAD_CRC_FIELD_NUMBER: _ClassVar[int]
    inode: int
    offset: int
    head_bytes: int
    head_crc: int
    def __init__(self, inode: _Optional[int] = ..., offset: _Optional[int] = ..., head_bytes: _Optional[int] = ..., head_crc: _Optional[int] = ...) -> None: ...

class LogRecord(_message.Message):
    __slots__ = ("at", "stream", "data", "end", "file")
    AT_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    stream: LogStream
    data: bytes
    end: int
    file: LogPlace
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., stream: _Optional[_Union[LogStream, str]] = ..., data: _Optional[bytes] = ..., end: _Optional[int] = ..., file: _Optional[_Union[LogPlace, _Mapping[str, object]]] = ...) -> None: ...

class AttachInput(_message.Message):
    __slots__ = ("open", "stdin", "resize", "close_stdin")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    CLOSE_STDIN_FIELD_NUMBER: _ClassVar[int]
    open: AttachOpen
    stdin: bytes
    resize: Resize
    close_stdin: bool
    def __init__(self, open: _Optional[_Union[AttachOpen, _Mapping[str, object]]] = ..., stdin: _Optional[bytes] = ..., resize: _Optional[_Union[Resize, _Mapping[str, object]]] = ..., close_stdin: _Optional[bool] = ...) -> None: ...

class AttachOpen(_message.Message):
    __slots__ = ("exec_id", "stdin", "output", "backpressure", "replay_bytes", "resume", "input_id", "input_goes_on")
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    BACKPRESSURE_FIELD_NUMBER: _ClassVar[int]
    REPLAY_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    INPUT_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_GOES_ON_FIELD_NUMBER: _ClassVar[int]
    exec_id: str
    stdin: bool
    output: bool
    backpressure: bool
    replay_bytes: int
    resume: AttachPlace
    input_id: int
    input_goes_on: bool
    def __init__(self, exec_id: _Optional[str] = ..., stdin: _Optional[bool] = ..., output: _Optional[bool] = ..., backpressure: _Optional[bool] = ..., replay_bytes: _Optional[int] = ..., resume: _Optional[_Union[AttachPlace, _Mapping[str, object]]] = ..., input_id: _Optional[int] = ..., input_goes_on: _Optional[bool] = ...) -> None: ...

class AttachPlace(_message.Message):
    __slots__ = ("run", "stdout", "stderr", "log")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    run: int
    stdout: int
    stderr: int
    log: LogPlace
    def __init__(self, run: _Optional[int] = ..., stdout: _Optional[int] = ..., stderr: _Optional[int] = ..., log: _Optional[_Union[LogPlace, _Mapping[str, object]]] = ...) -> None: ...

class Resize(_message.Message):
    __slots__ = ("width", "height")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class AttachOutput(_message.Message):
    __slots__ = ("opened", "stdout", "stderr", "exited", "cut", "accepted", "missed", "place")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    EXITED_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    opened: AttachOpened
    stdout: bytes
    stderr: bytes
    exited: ExitRecord
    cut: AttachCut
    accepted: int
    missed: AttachMissed
    place: AttachPlace
    def __init__(self, opened: _Optional[_Union[AttachOpened, _Mapping[str, object]]] = ..., stdout: _Optional[bytes] = ..., stderr: _Optional[bytes] = ..., exited: _Optional[_Union[ExitRecord, _Mapping[str, object]]] = ..., cut: _Optional[_Union[AttachCut, _Mapping[str, object]]] = ..., accepted: _Optional[int] = ..., missed: _Optional[_Union[AttachMissed, _Mapping[str, object]]] = ..., place: _Optional[_Union[AttachPlace, _Mapping[str, object]]] = ...) -> None: ...

class AttachOpened(_message.Message):
    __slots__ = ("terminal", "place", "accepted")
    TERMINAL_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    terminal: bool
    place: AttachPlace
    accepted: int
    def __init__(self, terminal: _Optional[bool] = ..., place: _Optional[_Union[AttachPlace, _Mapping[str, object]]] = ..., accepted: _Optional[int] = ...) -> None: ...

class AttachMissed(_message.Message):
    __slots__ = ("bytes", "reason")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    reason: str
    def __init__(self, bytes: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class AttachCut(_message.Message):
    __slots__ = ("reason", "missed_bytes")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MISSED_BYTES_FIELD_NUMBER: _ClassVar[int]
    reason: str
    missed_bytes: int
    def __init__(self, reason: _Optional[str] = ..., missed_bytes: _Optional[int] = ...) -> None: ...
