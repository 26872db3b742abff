"""The systemd units that `shimd config unit` prints."""

import os
from collections.abc import Sequence

from daemon.config import Config

# KillMode=process: only the daemon is stopped; shims and containers run on. TasksMax and Delegate: containers are
# below us until they get cgroups of their own. OOMScoreAdjust: shims start one point above us, containers set theirs.
# NotifyAccess=main: in an upgrade the old main process names the new one (MAINPID), which may speak from then on.
# No sandboxing: what systemd sets up for a service (mount namespace, seccomp, bounding set, no_new_privs) is inherited
# by shims, and so by every container. What may be restricted is said in each container's spec.
_SERVICE = """\
# systemd unit of shimd: put it into /etc/systemd/system/shimd.service
[Unit]
Description=shimd, a container supervisor
# With the socket unit, systemd holds the socket: who connects while shimd is away waits, and is served when it is back.
Wants=shimd.socket
After=network.target local-fs.target shimd.socket
# Whatever keeps it from starting, it is tried again for ever: Restart= makes 30 starts a minute at most. The limit ends
# what is left: a client that waits at the socket has what cannot start (78, below) started again at once.
StartLimitIntervalSec=60
StartLimitBurst=40

[Service]
Type=notify
NotifyAccess=main
ExecStart={start}
# A new program without a moment of absence: systemctl reload shimd. A restart refuses nobody either, but takes longer.
ExecReload={reload}
# Without the socket unit: systemd keeps the socket over a restart all the same.
FileDescriptorStoreMax=4
Environment=SHIMD_FDSTORE=4
# Stopping or losing the daemon never touches a container: only the main process is signalled.
KillMode=process
Restart=always
RestartSec=2
# EX_CONFIG: a configuration or a store that it cannot use. Another try would find the same.
RestartPreventExitStatus=78
WatchdogSec=60
# The cgroups below the unit are ours to manage.
Delegate=yes
OOMScoreAdjust=-999
TasksMax=infinity
LimitNOFILE=1048576
LimitCORE=infinity

[Install]
WantedBy=multi-user.target
"""

_SOCKET = """\
# systemd unit of shimd's socket: put it into /etc/systemd/system/shimd.socket
[Unit]
Description=The socket of shimd

[Socket]
ListenStream={address}
SocketMode={mode:04o}
{owner}{directory}Backlog=1024
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


def service_text(program: str, ctl: str, config: Config, options: Sequence[str] = ()) -> str:
    """The service for this program, started with these options; ``ctl`` is the shimctl that goes with it."""
    start = _command(program, "run", *options)
    return _SERVICE.format(start=start, reload=_command(ctl, "--address", config.socket_path, "daemon", "upgrade"))


def socket_text(config: Config) -> str:
    """The socket unit, which the service prefers to a socket of its own."""
    owner = ""
    if (config.socket.uid, config.socket.gid) != (0, 0):
        owner = f"SocketUser={config.socket.uid}\nSocketGroup={config.socket.gid}\n"
    # systemd makes it before us, and bundles are to be in it.
    is_ours = os.path.dirname(config.socket_path) == config.state_dir
    return _SOCKET.format(
        address=config.socket_path.replace("%", "%%"),
        mode=config.socket.mode,
        owner=owner,
        directory="DirectoryMode=0700\n" if is_ours else "",
    )


def _command(*words: str) -> str:
    """As ExecStart= reads it. Source: systemd.service(5), COMMAND LINES; systemd.unit(5), SPECIFIERS."""
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return f'"{escaped}"' if not word or escaped != word or any(one in word for one in " \t'`;") else word
