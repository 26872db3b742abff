#!/usr/bin/env bash
# Make this checkout ready to run on a bare Debian 12 (or newer): system packages by apt, a virtual environment by venv and pip.
# Says what it does while it does it and skips what is there. Usage: .ci/setup.sh [run|dev|fuzz|bench]
#   run    what `make demo` needs (default)         dev    the test and lint tools, and containerd to compare with
#   fuzz   dev and the fuzzer                       bench  run, and containerd and conmon to measure beside
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
what=${1:-run}
venv=${VENV:-$here/.venv}
case $what in run | dev | fuzz | bench) ;; *) echo "usage: .ci/setup.sh [run|dev|fuzz|bench]" >&2; exit 2 ;; esac

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# --- system packages ------------------------------------------------------------------------------------------------

# Is the thing a package is wanted for there? A runc from elsewhere is as good as Debian's, so look for the thing first.
has_package() {
    case $1 in
        runc | gcc | conmon) command -v "$1" >/dev/null ;;
        busybox-static) busybox_is_static ;;
        systemd) [ -x /lib/systemd/systemd ] && [ -x /lib/systemd/systemd-journald ] && command -v systemd-run >/dev/null ;;
        e2fsprogs) command -v mkfs.ext4 >/dev/null ;;
        libcap-dev) [ -e /usr/include/sys/capability.h ] ;;
        ca-certificates) [ -s /etc/ssl/certs/ca-certificates.crt ] ;;
        containerd) command -v containerd >/dev/null && command -v ctr >/dev/null && command -v containerd-shim-runc-v2 >/dev/null ;;
        *) [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ] ;;
    esac
}

# The root file systems of the demo and the tests hold nothing but busybox, so it must not want a libc. An ELF program
# that wants one names its loader in a PT_INTERP segment.
busybox_is_static() {
    local path
    path=$(command -v busybox) && ! LC_ALL=C grep -qa -m1 'ld-linux\|ld-musl' <(head -c 4096 "$path")
}

apt_install() {
    command -v apt-get >/dev/null || die "this machine has no apt-get; please install the equivalents of: $*"
    [ "$(id -u)" = 0 ] || die "some system packages are missing and only root can install them. Run: sudo apt-get install $*"
    say "installing system packages: $*"
    export DEBIAN_FRONTEND=noninteractive
    local install=(apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@")
    local log
    log=$(mktemp)
    [[ " $* " != *" containerd "* && " $* " != *" systemd "* ]] || keep_services_down
    # No lists yet, or lists older than the archive: fetch them and try once more.
    if ! "${install[@]}" >"$log" 2>&1; then
        say "refreshing apt's package lists first"
        apt-get update -qq -o DPkg::Lock::Timeout=300 >"$log" 2>&1 || say "apt-get update complained; going on with what it has"
        "${install[@]}" >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; die "apt-get could not install: $*"; }
    fi
    rm -f "$log"
}

# Debian starts a service with its package, and we want the programs of containerd and systemd only. What systemd's package
# itself would start or restart it does only where systemd is PID 1 already, and then nothing is installed. Source: policy-rc.d, in
# /usr/share/doc/init-system-helpers/README.policy-rc.d.gz
keep_services_down() {
    local policy=/usr/sbin/policy-rc.d
    [ ! -e "$policy" ] || return 0
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
}

# A Python is 3.11 or newer, with venv and headers (python-prctl is compiled).

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
is_complete() {
    "$1" -c 'import os, sys, sysconfig, ensurepip, venv
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null
}

find_python() {
    local name path
    for name in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        path=$(command -v "$name") && is_new_enough "$path" && is_complete "$path" && { echo "$path"; return; }
    done
    return 1
}

want=(runc busybox-static libcap-dev gcc libc6-dev ca-certificates)
[ "$what" = run ] || want+=(containerd e2fsprogs faketime systemd)
[ "$what" != bench ] || want+=(conmon)
missing=()
for package in "${want[@]}"; do
    has_package "$package" || missing+=("$package")
done
find_python >/dev/null || missing+=(python3 python3-venv python3-dev)
[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
hash -r

# --- the virtual environment ---------------------------------------------------------------------------------------

stamp_text() { { echo "$here"; cat "$here/pyproject.toml" "$here/.ci/setup.sh"; } | cksum; }
stamp=$venv/.ready-$what
[ "$what" = bench ] && stamp=$venv/.ready-run
if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null && [ "$(cat "$stamp" 2>/dev/null)" = "$(stamp_text)" ]; then
    exit 0
fi

python=$(find_python) || python=$(PYTHON=/usr/bin/python3 find_python) ||
    die "found no Python 3.11 or newer with venv and headers; name one with PYTHON=/path/to/python3"

if ! { [ -x "$venv/bin/python" ] && is_new_enough "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    say "making a virtual environment at $venv with $("$python" --version) ($python)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

case $what in run | bench) extra="" ;; dev) extra="[dev]" ;; fuzz) extra="[dev,fuzz]" ;; esac
say "installing shimd$extra and its dependencies into it (pip)"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
log=$venv/pip.log
"$venv/bin/python" -m pip install --editable "$here$extra" >"$log" 2>&1 || { cat "$log" >&2; die "pip could not install shimd$extra; its words are above"; }
# containerd runs this one twice for every container: it is written to start quicker than what pip makes.
"$venv/bin/python" -m shim.launcher "$venv/bin" >"$log" || { cat "$log" >&2; die "the shim's program could not be written"; }
stamp_text >"$stamp"
case $what in dev | fuzz) stamp_text >"$venv/.ready-run" ;; esac
say "ready"
