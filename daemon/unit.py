"""The systemd units that `shimd config unit` prints."""

# KillMode=process: only the daemon is stopped; shims and containers run on. TasksMax and Delegate: containers are
# below us until they get cgroups of their own. OOMScoreAdjust: shims start one point above us, containers set theirs.
# NotifyAccess=main: in an upgrade the old main process names the new one (MAINPID), which may speak from then on.
_SERVICE = """\
# systemd unit of shimd: put it into /etc/systemd/system/shimd.service
[Unit]
Description=shimd, a container supervisor
Documentation=man:systemd.service(5)
# With the socket unit, systemd holds the socket: who connects while shimd is away waits, and is served when it is back.
Wants=shimd.socket
After=network.target local-fs.target shimd.socket

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} run --config {config}
# A new program without a moment of absence: systemctl reload shimd. A restart refuses nobody either, but takes longer.
ExecReload={ctl} --address {address} daemon upgrade
# Without the socket unit: systemd keeps the socket over a restart all the same.
FileDescriptorStoreMax=4
Environment=SHIMD_FDSTORE=4
# Stopping or losing the daemon never touches a container: only the main process is signalled.
KillMode=process
Restart=always
RestartSec=1
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
Documentation=man:systemd.socket(5)

[Socket]
ListenStream={address}
SocketMode={mode:04o}
Backlog=1024

[Install]
WantedBy=sockets.target
"""


def service_text(program: str, ctl: str, config: str, address: str) -> str:
    """The service for this program and configuration file; ``ctl`` is the shimctl that goes with it."""
    return _SERVICE.format(program=program, ctl=ctl, config=config, address=address)


def socket_text(address: str, mode: int) -> str:
    """The socket unit, which the service prefers to a socket of its own."""
    return _SOCKET.format(address=address, mode=mode)
