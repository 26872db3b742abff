#!/usr/bin/env bash
# Run tests as they run on a production host of Debian 12: its own kernel (6.1), cgroup v2 alone, systemd as PID 1, in a machine
# that QEMU emulates, without hardware help: some ten times slower. The first run makes the disk (some minutes, 3 GB, in build/vm).
# Usage: .ci/vm.sh [argument of pytest]...    root; VM=folder for another place, VM_SMP=processors (2), VM_MIB=memory (4096)
# Source: debootstrap(8), mke2fs(8) -d, qemu-system-x86_64(1), kernel-command-line(7).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
vm=${VM:-$here/build/vm}
release=bookworm
packages=(systemd systemd-sysv dbus udev kmod iproute2 procps make git ca-certificates runc containerd busybox-static libcap-dev gcc
    libc6-dev python3 python3-venv python3-dev e2fsprogs faketime linux-image-amd64 initramfs-tools)

say() { printf 'vm: %s\n' "$*"; }
die() { printf 'vm: %s\n' "$*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "it makes the file system of a machine, and needs root"

need=()
command -v qemu-system-x86_64 >/dev/null || need+=(qemu-system-x86)
command -v debootstrap >/dev/null || need+=(debootstrap)
command -v mkfs.ext4 >/dev/null || need+=(e2fsprogs)
if [ ${#need[@]} != 0 ]; then
    say "installing ${need[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >"${TMPDIR:-/tmp}/vm-apt.log" 2>&1 ||
        die "apt-get could not install ${need[*]}: see ${TMPDIR:-/tmp}/vm-apt.log"
fi
mkdir -p "$vm"
root=$vm/root

# --- its disk: Debian and our dependencies ------------------------------------------------------------------------------------

stamp=$(printf '%s\n' "${packages[@]}" | cat - "$here/pyproject.toml" "$here/.ci/setup.sh" "$here/.ci/vm.sh" | cksum)
if [ "$(cat "$vm/stamp" 2>/dev/null)" != "$stamp" ]; then
    rm -rf "$vm/stamp" "$vm/disk" "$root"
    say "making a Debian $release in $root (log: $vm/debootstrap.log)"
    debootstrap --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" "$release" "$root" >"$vm/debootstrap.log" 2>&1 ||
        die "debootstrap failed: see $vm/debootstrap.log"
    # How this machine reaches its registries is how that one does while it is made; the emulated one has no network.
    for file in /etc/resolv.conf /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
        [ ! -e "$file" ] || cp -L "$file" "$root$file"
    done
    say "installing shimd's dependencies into it (log: $vm/setup.log)"
    mkdir -p "$root/src/shimd"
    git -C "$here" archive HEAD | tar -C "$root/src/shimd" -x
    unshare -m --propagation private bash -c '
        mount -t proc proc "$1/proc" && exec chroot "$1" bash -c "cd /src/shimd && exec bash .ci/setup.sh dev"' - "$root" \
        >"$vm/setup.log" 2>&1 || die "the dependencies could not be installed: see $vm/setup.log"
    cat >"$root/etc/systemd/system/job.service" <<'UNIT'
[Unit]
Description=The tests that were asked for
[Service]
Type=oneshot
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
Environment=HOME=/root
StandardInput=null
StandardOutput=tty
StandardError=tty
TTYPath=/dev/hvc0
ExecStartPre=/bin/mkdir -p /job
ExecStartPre=/bin/mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 job /job
ExecStart=/bin/bash /job/run
ExecStopPost=/bin/systemctl poweroff --force --force
[Install]
WantedBy=multi-user.target
UNIT
    for unit in systemd-timesyncd.service containerd.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
        e2scrub_all.timer fstrim.timer getty@tty1.service serial-getty@hvc0.service serial-getty@ttyS0.service; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
    ln -sf ../job.service "$root/etc/systemd/system/multi-user.target.wants/job.service"
    printf 'virtio_console\n9pnet_virtio\noverlay\n' >"$root/etc/modules-load.d/job.conf"
    echo vm >"$root/etc/hostname"
    : >"$root/etc/fstab"
    truncate -s 6G "$vm/disk"
    mkfs.ext4 -q -F -d "$root" "$vm/disk"
    mv "$root/boot" "$vm/boot.new"
    rm -rf "$root" "$vm/boot"
    mv "$vm/boot.new" "$vm/boot"
    echo "$stamp" >"$vm/stamp"
fi

# --- one run ------------------------------------------------------------------------------------------------------------------

job=$(mktemp -d "$vm/job.XXXXXX")
trap 'rm -rf "$job"' EXIT
# What is checked out here, changes and new files included, over what the disk was made with.
(cd "$here" && git ls-files -z --cached --others --exclude-standard | xargs -0 -r ls -d 2>/dev/null | tar -cf "$job/code.tar" -T -)
printf '%q ' "$@" >"$job/arguments"
cat >"$job/run" <<'RUN'
cd /src/shimd && tar -xf /job/code.tar || exit 1
uname -srv
stat -fc 'cgroups: %T' /sys/fs/cgroup
eval "arguments=($(cat /job/arguments))"
.venv/bin/python -m pytest -p no:cacheprovider "${arguments[@]}"
echo $? >/job/status
RUN
kernel=$(ls "$vm"/boot/vmlinuz-* | tail -1)
say "booting ${kernel##*/} (console: $vm/console.log)"
qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp "${VM_SMP:-2}" -m "${VM_MIB:-4096}" -nodefaults -no-user-config -no-reboot \
    -display none -monitor none -nic none -serial "file:$vm/console.log" \
    -kernel "$kernel" -initrd "${kernel/vmlinuz/initrd.img}" -append 'root=/dev/vda rw console=ttyS0 panic=-1 no_timer_check quiet' \
    -drive "file=$vm/disk,format=raw,if=virtio,cache=unsafe,snapshot=on" -device virtio-rng-pci \
    -virtfs "local,path=$job,mount_tag=job,security_model=none" \
    -device virtio-serial -chardev stdio,id=out,signal=on -device virtconsole,chardev=out
[ -s "$job/status" ] || die "the machine ended before the tests did: see $vm/console.log"
exit "$(cat "$job/status")"
