import datetime

from google.protobuf import any_pb2 as _any_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from ttrpc.api import shim as _shim_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Health(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEALTH_UNKNOWN: _ClassVar[Health]
    HEALTH_CONNECTING: _ClassVar[Health]
    HEALTH_SERVING: _ClassVar[Health]
    HEALTH_UNREACHABLE: _ClassVar[Health]
    HEALTH_GONE: _ClassVar[Health]
HEALTH_UNKNOWN: Health
HEALTH_CONNECTING: Health
HEALTH_SERVING: Health
HEALTH_UNREACHABLE: Health
HEALTH_GONE: Health

class UpgradeRequest(_message.Message):
    __slots__ = ("id", "program", "dry_run")
    ID_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    id: str
    program: str
    dry_run: bool
    def __init__(self, id: _Optional[str] = ..., program: _Optional[str] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class UpgradeProgress(_message.Message):
    __slots__ = ("step", "version", "pid", "schema", "writes_schema", "oldest_reader")
    class Step(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STEP_UNKNOWN: _ClassVar[UpgradeProgress.Step]
        STEP_CHECKED: _ClassVar[UpgradeProgress.Step]
        STEP_STARTED: _ClassVar[UpgradeProgress.Step]
        STEP_READY: _ClassVar[UpgradeProgress.Step]
        STEP_HANDING_OVER: _ClassVar[UpgradeProgress.Step]
    STEP_UNKNOWN: UpgradeProgress.Step
    STEP_CHECKED: UpgradeProgress.Step
    STEP_STARTED: UpgradeProgress.Step
    STEP_READY: UpgradeProgress.Step
    STEP_HANDING_OVER: UpgradeProgress.Step
    STEP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    WRITES_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    OLDEST_READER_FIELD_NUMBER: _ClassVar[int]
    step: UpgradeProgress.Step
    version: str
    pid: int
    schema: int
    writes_schema: int
    oldest_reader: int
    def __init__(self, step: _Optional[_Union[UpgradeProgress.Step, str]] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ..., schema: _Optional[int] = ..., writes_schema: _Optional[int] = ..., oldest_reader: _Optional[int] = ...) -> None: ...

class UpgradeRecord(_message.Message):
    __slots__ = ("id", "done", "reason", "from_version", "to_version", "from_pid", "to_pid", "gap_ns", "at")
    ID_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FROM_VERSION_FIELD_NUMBER: _ClassVar[int]
    TO_VERSION_FIELD_NUMBER: _ClassVar[int]
    FROM_PID_FIELD_NUMBER: _ClassVar[int]
    TO_PID_FIELD_NUMBER: _ClassVar[int]
    GAP_NS_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    done: bool
    reason: str
    from_version: str
    to_version: str
    from_pid: int
    to_pid: int
    gap_ns: int
    at: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., done: _Optional[bool] = ..., reason: _Optional[str] = ..., from_version: _Optional[str] = ..., to_version: _Optional[str] = ..., from_pid: _Optional[int] = ..., to_pid: _Optional[int] = ..., gap_ns: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ...) -> None: ...

class ForceDeleteRequest(_message.Message):
    __slots__ = ("container_id",)
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    def __init__(self, container_id: _Optional[str] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("version", "pid", "started_at", "recovering", "adopted", "unreachable", "state_dir", "root_dir", "newest_event_seq", "oldest_event_seq", "last_upgrade")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    RECOVERING_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_FIELD_NUMBER: _ClassVar[int]
    UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    STATE_DIR_FIELD_NUMBER: _ClassVar[int]
    ROOT_DIR_FIELD_NUMBER: _ClassVar[int]
    NEWEST_EVENT_SEQ_FIELD_NUMBER: _ClassVar[int]
    OLDEST_EVENT_SEQ_FIELD_NUMBER: _ClassVar[int]
    LAST_UPGRADE_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    started_at: _timestamp_pb2.Timestamp
    recovering: bool
    adopted: int
    unreachable: int
    state_dir: str
    root_dir: str
    newest_event_seq: int
    oldest_event_seq: int
    last_upgrade: UpgradeRecord
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., recovering: _Optional[bool] = ..., adopted: _Optional[int] = ..., unreachable: _Optional[int] = ..., state_dir: _Optional[str] = ..., root_dir: _Optional[str] = ..., newest_event_seq: _Optional[int] = ..., oldest_event_seq: _Optional[int] = ..., last_upgrade: _Optional[_Union[UpgradeRecord, _Mapping[str, object]]] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("after_seq", "follow", "filters", "all_namespaces", "from_now")
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    ALL_NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    FROM_NOW_FIELD_NUMBER: _ClassVar[int]
    after_seq: int
    follow: bool
    filters: _containers.RepeatedScalarFieldContainer[str]
    all_namespaces: bool
    from_now: bool
    def __init__(self, after_seq: _Optional[int] = ..., follow: _Optional[bool] = ..., filters: _Optional[_Iterable[str]] = ..., all_namespaces: _Optional[bool] = ..., from_now: _Optional[bool] = ...) -> None: ...

class EventRecord(_message.Message):
    __slots__ = ("seq", "timestamp", "namespace", "topic", "event", "exit", "gap")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    seq: int
    timestamp: _timestamp_pb2.Timestamp
    namespace: str
    topic: str
    event: _any_pb2.Any
    exit: _shim_pb2.ExitRecord
    gap: bool
    def __init__(self, seq: _Optional[int] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., namespace: _Optional[str] = ..., topic: _Optional[str] = ..., event: _Optional[_Union[_any_pb2.Any, _Mapping[str, object]]] = ..., exit: _Optional[_Union[_shim_pb2.ExitRecord, _Mapping[str, object]]] = ..., gap: _Optional[bool] = ...) -> None: ...

class ExitsRequest(_message.Message):
    __slots__ = ("container_id", "exec_id", "limit", "current")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    limit: int
    current: bool
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., limit: _Optional[int] = ..., current: _Optional[bool] = ...) -> None: ...

class ExitsResponse(_message.Message):
    __slots__ = ("exits",)
    EXITS_FIELD_NUMBER: _ClassVar[int]
    exits: _containers.RepeatedCompositeFieldContainer[_shim_pb2.ExitRecord]
    def __init__(self, exits: _Optional[_Iterable[_Union[_shim_pb2.ExitRecord, _Mapping[str, object]]]] = ...) -> None: ...

class ShimsRequest(_message.Message):
    __slots__ = ("container_id", "all_namespaces")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    ALL_NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    all_namespaces: bool
    def __init__(self, container_id: _Optional[str] = ..., all_namespaces: _Optional[bool] = ...) -> None: ...

class ShimRecord(_message.Message):
    __slots__ = ("namespace", "container_id", "address", "pid", "version", "bundle", "health", "reason", "incarnation", "stored_seq", "restarts", "next_restart_at", "trouble", "stack")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STORED_SEQ_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_RESTART_AT_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    container_id: str
    address: str
    pid: int
    version: str
    bundle: str
    health: Health
    reason: str
    incarnation: str
    stored_seq: int
    restarts: int
    next_restart_at: _timestamp_pb2.Timestamp
    trouble: str
    stack: str
    def __init__(self, namespace: _Optional[str] = ..., container_id: _Optional[str] = ..., address: _Optional[str] = ..., pid: _Optional[int] = ..., version: _Optional[str] = ..., bundle: _Optional[str] = ..., health: _Optional[_Union[Health, str]] = ..., reason: _Optional[str] = ..., incarnation: _Optional[str] = ..., stored_seq: _Optional[int] = ..., restarts: _Optional[int] = ..., next_restart_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., trouble: _Optional[str] = ..., stack: _Optional[str] = ...) -> None: ...

class ShimWedged(_message.Message):
    __slots__ = ("container_id", "pid", "kind", "reason", "stack")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    pid: int
    kind: str
    reason: str
    stack: str
    def __init__(self, container_id: _Optional[str] = ..., pid: _Optional[int] = ..., kind: _Optional[str] = ..., reason: _Optional[str] = ..., stack: _Optional[str] = ...) -> None: ...

class ShimRecovered(_message.Message):
    __slots__ = ("container_id", "pid")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    pid: int
    def __init__(self, container_id: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class ShimReplaced(_message.Message):
    __slots__ = ("container_id", "old_pid", "pid", "reason", "stack")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    OLD_PID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    old_pid: int
    pid: int
    reason: str
    stack: str
    def __init__(self, container_id: _Optional[str] = ..., old_pid: _Optional[int] = ..., pid: _Optional[int] = ..., reason: _Optional[str] = ..., stack: _Optional[str] = ...) -> None: ...

class ShimsResponse(_message.Message):
    __slots__ = ("shims",)
    SHIMS_FIELD_NUMBER: _ClassVar[int]
    shims: _containers.RepeatedCompositeFieldContainer[ShimRecord]
    def __init__(self, shims: _Optional[_Iterable[_Union[ShimRecord, _Mapping[str, object]]]] = ...) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("container_id", "options")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    options: _shim_pb2.LogsRequest
    def __init__(self, container_id: _Optional[str] = ..., options: _Optional[_Union[_shim_pb2.LogsRequest, _Mapping[str, object]]] = ...) -> None: ...

class AttachInput(_message.Message):
    __slots__ = ("container_id", "input")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    input: _shim_pb2.AttachInput
    def __init__(self, container_id: _Optional[str] = ..., input: _Optional[_Union[_shim_pb2.AttachInput, _Mapping[str, object]]] = ...) -> None: ...
