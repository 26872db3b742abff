"""`shimctl update`: limits and restart policy of a container, now and at its next start."""

import argparse
import json

from daemon.ctl.commands import Command
from daemon.ctl.errors import UsageError
from daemon.ctl.flags import check_restart, limit_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from daemon.ctl.client import Daemon


def resources_of(args: argparse.Namespace) -> "dict[str, Any]":
    """The limits given, as an OCI resources object; empty when none is.

    Raises: SpecError.
    """
    from daemon import spec

    memory: dict[str, int] = {}
    cpu: dict[str, int | str] = {}
    if args.memory:
        memory["limit"] = spec.parse_memory_limit(args.memory)
    if args.memory_swap:
        memory["swap"] = spec.parse_memory_swap(args.memory_swap)
    if args.cpus:
        cpu["quota"], cpu["period"] = spec.parse_cpus(args.cpus)
    if args.cpu_shares is not None:
        cpu["shares"] = args.cpu_shares
    if args.cpuset_cpus:
        cpu["cpus"] = args.cpuset_cpus
    made: dict[str, Any] = {}
    if memory:
        made["memory"] = memory
    if cpu:
        made["cpu"] = cpu
    if args.pids_limit is not None:
        made["pids"] = {"limit": args.pids_limit if args.pids_limit > 0 else -1}
    return made


def merged(old: "dict[str, Any]", new: "dict[str, Any]") -> "dict[str, Any]":
    """Resources with some limits replaced: one level deep, as the OCI object is."""
    made = dict(old)
    for name, limits in new.items():
        made[name] = {**(old.get(name) or {}), **limits}
    return made


def _update(daemon: "Daemon", container_id: str, resources: "dict[str, Any]", labels: dict[str, str]) -> None:
    """The living task first, because it may refuse; then the record, so that the next start has the same."""
    from daemon.ctl import compose, resume
    from daemon.ctl.client import CONTAINERS, TASKS
    from ttrpc.api import containers, process, tasks, wkt

    record = resume.require_container(daemon, container_id)
    task = resume.find_task(daemon, container_id)
    changed = containers.Container(id=container_id, labels=labels)
    paths = [f"labels.{name}" for name in labels]
    if resources:
        if task is not None and task.status != process.STOPPED:
            packed = wkt.any_of(compose.RESOURCES_TYPE, json.dumps(resources).encode())
            daemon.call(TASKS, "Update", tasks.UpdateTaskRequest(container_id=container_id, resources=packed))
        spec = compose.spec_of(record)
        linux = spec.setdefault("linux", {})
        linux["resources"] = merged(linux.get("resources") or {}, resources)
        changed.spec.CopyFrom(wkt.any_of(compose.SPEC_TYPE, json.dumps(spec, separators=(",", ":")).encode()))
        paths.append("spec")
    request = containers.UpdateContainerRequest(container=changed, update_mask=wkt.FieldMask(paths=paths))
    daemon.call(CONTAINERS, "Update", request)


def labels_of(args: argparse.Namespace) -> dict[str, str]:
    """The labels that --restart and --label mean.

    Raises: UsageError.
    """
    from daemon.ctl import labels
    from daemon.ctl.flags import key_values

    made = key_values(args.label, "label")
    if args.restart is not None:
        made[labels.RESTART_POLICY] = check_restart(args.restart)
        made[labels.RESTART_STATUS] = "stopped" if args.restart == "no" else "running"
    return made


def update(args: argparse.Namespace) -> int:
    """`shimctl update`."""
    from daemon.ctl.client import open_daemon
    from daemon.ctl.each import for_each

    resources, labels = resources_of(args), labels_of(args)
    if not resources and not labels:
        raise UsageError("nothing to change: give a limit, --restart or --label")
    with open_daemon(args) as daemon:
        return for_each(args.ids, lambda name: _update(daemon, name, resources, labels))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID")
    group = parser.add_argument_group("what to change")
    limit_options(group)
    group.add_argument("--pids-limit", type=int, metavar="N", help="processes and threads; -1 for no limit")
    group.add_argument("--restart", metavar="POLICY", help="no, on-failure[:N], always or unless-stopped")
    group.add_argument("-l", "--label", action="append", default=[], metavar="NAME=VALUE", help="set a label")


UPDATE = Command(
    update,
    description="""\
Change limits of containers while they run, and in their records, so that the next start has them too; or the restart
policy, or labels. What is not named stays as it is.
""",
    examples="""\
  shimctl update --memory 512m --cpus 2 web
  shimctl update --restart unless-stopped web
""",
    options=_options,
)
