"""The systemd unit that `shimd config unit` prints."""

# KillMode=process: only the daemon is stopped; keeper, shims and containers run on, also those that are not yet in a
# scope of their own. TasksMax and Delegate: containers are below us until they get cgroups of their own.
# OOMScoreAdjust: shims start one point above us, containers set theirs.
_UNIT = """\
# systemd unit of shimd: put it into /etc/systemd/system/shimd.service
[Unit]
Description=shimd, a container supervisor
Documentation=man:systemd.service(5)
After=network.target local-fs.target

[Service]
Type=notify
ExecStart={program} run --config {config}
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


def unit_text(program: str, config: str) -> str:
    """The unit for this program and configuration file."""
    return _UNIT.format(program=program, config=config)
