"""The shape of an OCI runtime spec as a table, and the walk that holds a spec against it. Pure.

A shape is one of: the name of a type ("str", "int", …), ``[shape]`` for a list, ``{key: shape}`` for an object, or
``{"*": shape}`` for an object with free keys. Source: OCI runtime-spec 1.0.2 to 1.2 (config.md, config-linux.md).
"""

from daemon.spec_parse import did_you_mean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Shape = Any

_STRINGS = ["str"]
_FREE_STRINGS = {"*": "str"}
_ID_MAPPINGS = [{"containerID": "uint", "hostID": "uint", "size": "uint"}]
_HOOKS = [{"path": "str", "args": _STRINGS, "env": _STRINGS, "timeout": "int"}]
_RATES = [{"major": "int", "minor": "int", "rate": "uint"}]

_PROCESS = {
    "terminal": "bool",
    "consoleSize": {"height": "uint", "width": "uint"},
    "user": {"uid": "uint", "gid": "uint", "umask": "uint", "additionalGids": ["uint"], "username": "str"},
    "args": _STRINGS,
    "commandLine": "str",
    "env": _STRINGS,
    "cwd": "str",
    "capabilities": {
        "bounding": _STRINGS,
        "effective": _STRINGS,
        "permitted": _STRINGS,
        "inheritable": _STRINGS,
        "ambient": _STRINGS,
    },
    "rlimits": [{"type": "str", "soft": "uint", "hard": "uint"}],
    "noNewPrivileges": "bool",
    "apparmorProfile": "str",
    "oomScoreAdj": "int",
    "selinuxLabel": "str",
    "scheduler": "any",
    "ioPriority": "any",
    "execCPUAffinity": "any",
}

RESOURCES = {
    "devices": [{"allow": "bool", "type": "str", "major": "int", "minor": "int", "access": "str"}],
    "memory": {
        "limit": "int",
        "reservation": "int",
        "swap": "int",
        "kernel": "int",
        "kernelTCP": "int",
        "swappiness": "uint",
        "disableOOMKiller": "bool",
        "useHierarchy": "bool",
        "checkBeforeUpdate": "bool",
    },
    "cpu": {
        "shares": "uint",
        "quota": "int",
        "burst": "uint",
        "period": "uint",
        "realtimeRuntime": "int",
        "realtimePeriod": "uint",
        "cpus": "str",
        "mems": "str",
        "idle": "int",
    },
    "pids": {"limit": "int"},
    "blockIO": {
        "weight": "uint",
        "leafWeight": "uint",
        "weightDevice": [{"major": "int", "minor": "int", "weight": "uint", "leafWeight": "uint"}],
        "throttleReadBpsDevice": _RATES,
        "throttleWriteBpsDevice": _RATES,
        "throttleReadIOPSDevice": _RATES,
        "throttleWriteIOPSDevice": _RATES,
    },
    "hugepageLimits": [{"pageSize": "str", "limit": "uint"}],
    "network": {"classID": "uint", "priorities": [{"name": "str", "priority": "uint"}]},
    "rdma": {"*": {"hcaHandles": "uint", "hcaObjects": "uint"}},
    "unified": _FREE_STRINGS,
}

_SECCOMP = {
    "defaultAction": "str",
    "defaultErrnoRet": "uint",
    "architectures": _STRINGS,
    "flags": _STRINGS,
    "listenerPath": "str",
    "listenerMetadata": "str",
    "syscalls": [
        {
            "names": _STRINGS,
            "action": "str",
            "errnoRet": "uint",
            "args": [{"index": "uint", "value": "uint", "valueTwo": "uint", "op": "str"}],
        }
    ],
}

_LINUX = {
    "uidMappings": _ID_MAPPINGS,
    "gidMappings": _ID_MAPPINGS,
    "sysctl": _FREE_STRINGS,
    "resources": RESOURCES,
    "cgroupsPath": "str",
    "namespaces": [{"type": "str", "path": "str"}],
    "devices": [
        {
            "path": "str",
            "type": "str",
            "major": "int",
            "minor": "int",
            "fileMode": "uint",
            "uid": "uint",
            "gid": "uint",
        }
    ],
    "netDevices": "any",
    "seccomp": _SECCOMP,
    "rootfsPropagation": "str",
    "maskedPaths": _STRINGS,
    "readonlyPaths": _STRINGS,
    "mountLabel": "str",
    "intelRdt": "any",
    "personality": "any",
    "timeOffsets": "any",
    "memoryPolicy": "any",
}

SPEC = {
    "ociVersion": "str",
    "process": _PROCESS,
    "root": {"path": "str", "readonly": "bool"},
    "hostname": "str",
    "domainname": "str",
    "mounts": [
        {
            "destination": "str",
            "type": "str",
            "source": "str",
            "options": _STRINGS,
            "uidMappings": _ID_MAPPINGS,
            "gidMappings": _ID_MAPPINGS,
        }
    ],
    "hooks": {
        "prestart": _HOOKS,
        "createRuntime": _HOOKS,
        "createContainer": _HOOKS,
        "startContainer": _HOOKS,
        "poststart": _HOOKS,
        "poststop": _HOOKS,
    },
    "annotations": _FREE_STRINGS,
    "linux": _LINUX,
    "solaris": "any",
    "windows": "any",
    "vm": "any",
    "zos": "any",
    "freebsd": "any",
}

# How alike an unknown key must be to a known one to count as a slip of the pen: one letter of a short word.
_SLIP = 0.75

_WANTED = {
    "str": "a string",
    "int": "a whole number",
    "uint": "a whole number, not negative",
    "bool": "true or false",
}


def misshapen(value: object, shape: "Shape", path: str = "") -> "Iterator[tuple[str, bool]]":
    """Every place where the value is not of the shape.

    Each as (``json.path: what, and what to do``, whether it breaks the shape: other checks cannot go on then).
    An unknown key is named only when it looks like a known one: newer specs may have more, a runtime ignores them.
    ``null`` counts as absent, as Go's decoder takes it.
    """
    if value is None or shape == "any":
        return
    if isinstance(shape, str):
        if not _is_a(value, shape):
            yield f"{path}: must be {_WANTED[shape]}, but is {_shown(value)}", True
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{path}: must be a list, but is {_shown(value)}", True
            return
        for index, each in enumerate(value):
            if each is None:
                yield f"{path}[{index}]: is null; remove it", True
            yield from misshapen(each, shape[0], f"{path}[{index}]")
    elif not isinstance(value, dict):
        yield f"{path or 'spec'}: must be an object, but is {_shown(value)}", True
    else:
        yield from _misshapen_object(value, shape, path)


def _misshapen_object(value: "dict[Any, Any]", shape: "dict[str, Shape]", path: str) -> "Iterator[tuple[str, bool]]":
    for key, each in value.items():
        where = f"{path}.{key}" if path else str(key)
        if "*" in shape:
            yield from misshapen(each, shape["*"], where)
        elif key in shape:
            yield from misshapen(each, shape[key], where)
        elif hint := did_you_mean(str(key), shape, _SLIP):
            yield f"{where}: a runtime ignores this key{hint}", False


def _is_a(value: object, name: str) -> bool:
    if name == "str":
        return isinstance(value, str)
    if name == "bool":
        return isinstance(value, bool)
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return name == "int" or value >= 0


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
