#!/usr/bin/env bash
# The main job on real containers: the daemon is killed with SIGKILL, and nothing is lost. Run by `make demo`, as root.
# Every claim is checked; the first that fails ends the demo with exit code 1. Whatever happens, nothing is left behind.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$here/.venv}
[[ $venv = /* ]] || venv=$here/$venv
PATH=$venv/bin:/usr/sbin:/sbin:$PATH

[ "$(id -u)" = 0 ] || { echo "the demo runs real containers and needs root" >&2; exit 1; }

dir=$(mktemp -d /tmp/shimd-demo.XXXXXX)
ns=demo-${dir##*.}                      # its cgroups carry this name, so they can be told from anybody else's
export SHIMD_DEMO=$dir                  # inherited by all we start: how we find it again
export SHIMD_ADDRESS=$dir/run/shimd.sock.ttrpc SHIMD_STATE=$dir/run SHIMD_NAMESPACE=$ns
daemon=""

# --- how it talks -----------------------------------------------------------------------------------------------------

bold="" dim="" green="" red="" plain=""
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
fi
chapter() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
say() { printf '  %s\n' "$*"; }
# Show a command as a person would type it, then run it.
show() {
    printf '%s  $ %s%s\n' "$dim" "$(quoted "$@")" "$plain"
    "$@" 2>&1 | sed 's/^/    /'
    return "${PIPESTATUS[0]}"
}
quoted() {
    local word out=""
    for word in "$@"; do
        case $word in *[!A-Za-z0-9_./:=,@+-]* | "") out+=" '$word'" ;; *) out+=" ${word/#$dir/\$DIR}" ;; esac
    done
    printf '%s' "${out# }"
}
claim() {
    local text=$1
    shift
    if "$@" >/dev/null 2>&1; then
        printf '  %s✔%s %s\n' "$green" "$plain" "$text"
    else
        printf '  %s✘ %s%s\n    (this did not hold: %s)\n' "$red" "$text" "$plain" "$(quoted "$@")"
        exit 1
    fi
}
# Ask until it holds; never longer than ten seconds.
until_holds() {
    local _
    for _ in $(seq 200); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    return 1
}

# --- what it looks at -------------------------------------------------------------------------------------------------

field() { python -c 'import json, sys
print(next(row[sys.argv[2]] for row in json.load(sys.stdin) if row["id"] == sys.argv[1]))' "$1" "$2"; }
pid_of() { shimctl ps -a --json | field "$1" pid; }
newest_tick() { awk '{ last = $2 } END { print last + 0 }'; }
ticks_in_daemonless_log() { shimctl shim logs clock | newest_tick; }
is_alive() { [ "$(cut -d' ' -f22 "/proc/$1/stat" 2>/dev/null)" = "$2" ]; } # pid and start time: the same process
start_time() { cut -d' ' -f22 "/proc/$1/stat"; }
more_than() { [ "$("${@:2}")" -gt "$1" ]; }
long_lived() { # pids of daemons, shims and clients that inherited our mark
    local file pid
    for file in $(grep -lzxF "SHIMD_DEMO=$dir" /proc/[0-9]*/environ 2>/dev/null); do
        pid=${file#/proc/} pid=${pid%/environ}
        tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q shim && echo "$pid"
    done
    return 0
}
keepers() { # of them, those that fork the shims; the title is another, the name is not
    local pid
    for pid in $(long_lived); do
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = shimd-keeper ] && echo "$pid"
    done
    return 0
}
cgroups() { find /sys/fs/cgroup -type d -path "*/$ns*" 2>/dev/null || true; }
mounts() { awk -v dir="$dir" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo; }

start_daemon() {
    shimd --config "$dir/config.toml" --state "$dir/run" --root "$dir/lib" >>"$dir/shimd.log" 2>&1 </dev/null &
    daemon=$!
    if ! until_holds shimctl --reconnect 0 version; then
        sed 's/^/    /' "$dir/shimd.log"
        say "the daemon did not come up; its log is above"
        exit 1
    fi
}

# --- the end, however it comes ----------------------------------------------------------------------------------------

clean_up() {
    local code=$? pid path
    trap - EXIT INT TERM
    set +e
    local victims
    for _ in 1 2 3 4 5; do
        victims=$(long_lived; cgroups | while read -r path; do cat "$path/cgroup.procs" 2>/dev/null; done | sort -u)
        [ -n "$victims" ] || break
        for pid in $victims; do kill -9 "$pid" 2>/dev/null; done
        sleep 0.1
    done
    mounts | sort -r | while read -r path; do umount -l "$path" 2>/dev/null; done
    cgroups | sort -r | while read -r path; do rmdir "$path" 2>/dev/null; done
    rm -rf "$dir"
    [ "$code" = 0 ] || printf '\n%sthe demo failed; everything it had made is removed%s\n' "$red" "$plain" >&2
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- the demo ---------------------------------------------------------------------------------------------------------

chapter "A root file system and a daemon"
say "One static busybox and its names make the root file system; DIR=$dir"
mkdir -p "$dir"/rootfs/{bin,dev,etc,proc,root,sys,tmp}
cp "$(command -v busybox)" "$dir/rootfs/bin/busybox"
for name in $(busybox --list); do [ "$name" = busybox ] || ln -s busybox "$dir/rootfs/bin/$name"; done
echo 'root:x:0:0:root:/root:/bin/sh' >"$dir/rootfs/etc/passwd"
shimd config default >"$dir/config.toml"
show shimd version
start_daemon
say "shimd serves on $SHIMD_ADDRESS (pid $daemon)"
show shimctl version

chapter "Two containers, each under its own shim"
# shellcheck disable=SC2016 # the container's shell expands these, not ours
show shimctl run -d --name clock --rootfs "$dir/rootfs" -- sh -c 'n=0; while sleep 0.1; do n=$((n+1)); echo tick $n; done'
show shimctl run -d --name brief --rootfs "$dir/rootfs" -- sh -c 'while ! [ -e /go ]; do sleep 0.05; done; echo going; exit 42'
until_holds more_than 3 ticks_in_daemonless_log
show shimctl ps
show shimctl logs --tail 3 clock
clock=$(pid_of clock) brief=$(pid_of brief)
clock_started=$(start_time "$clock")
cursor=$(shimctl events --since 0 --json | tail -n 1 | python -c 'import json, sys; print(json.loads(sys.stdin.readline())["seq"])')
say "clock has pid $clock; the newest event has number $cursor"

chapter "kill -9 the daemon"
show kill -9 "$daemon"
wait "$daemon" 2>/dev/null || true
claim "the daemon is gone" test ! -e "/proc/$daemon"
printf '%s  $ shimctl --reconnect 0 ps%s\n' "$dim" "$plain"
{ shimctl --reconnect 0 ps 2>&1 || true; } | sed 's/^/    /'
claim "the container runs on, the same process as before: pid $clock" is_alive "$clock" "$clock_started"
before=$(ticks_in_daemonless_log)
claim "its output goes on: beyond tick $before without a daemon" until_holds more_than "$((before + 5))" ticks_in_daemonless_log
say "a shim answers for itself:"
show shimctl shim list
show shimctl shim logs --tail 2 clock

chapter "A container ends while nobody supervises"
show touch "$dir/rootfs/go"
claim "brief (pid $brief) has exited, and no daemon saw it" until_holds test ! -e "/proc/$brief"
show shimctl shim list
say "its shim wrote the exit down before it told anybody:"
printf '%s  $ cat %s%s\n' "$dim" "\$DIR/run/…/brief/exits/init.json" "$plain"
tr ',' '\n' <"$(find "$dir/run" -path '*/brief/exits/init.json')" | grep -E '"(pid|code|source|exited_at_ns)"' | sed 's/^[ {]*/    /; s/}$//'

chapter "The daemon comes back"
start_daemon
say "a new shimd serves (pid $daemon)"
show shimctl ps -a
claim "clock still has pid $clock" test "$(pid_of clock)" = "$clock"
claim "and is the very same process" is_alive "$clock" "$clock_started"
before=$(shimctl logs clock | newest_tick)
claim "its log grows under the new daemon too: beyond tick $before" until_holds more_than "$before" eval 'shimctl logs clock | newest_tick'
claim "no tick was lost or doubled over the kill" eval 'shimctl logs clock | awk "\$1 != \"tick\" || \$2 != NR { bad = 1 } END { exit bad }"'
code=0
printf '%s  $ shimctl wait brief%s\n' "$dim" "$plain"
shimctl wait brief >"$dir/wait.out" || code=$?
sed 's/^/    /' "$dir/wait.out"
claim "brief's exit code is known exactly: $code" test "$code" = 42
show shimctl events --since "$cursor"
exits=$(shimctl events --since "$cursor" --json | grep -c '/tasks/exit' || true)
claim "the exit nobody saw is told once, after the fact: $exits event" test "$exits" = 1
claim "what it wrote on its way out is there" eval 'test "$(shimctl logs brief)" = going'

chapter "A terminal inside, as a person would use it"
say "typed on a terminal: tty, hostname, exit 7"
code=0
python "$here/.ci/type_on_terminal.py" 'tty' 'hostname' 'exit 7' -- shimctl exec -it clock sh >"$dir/terminal.out" || code=$?
sed 's/^/    /' "$dir/terminal.out"
claim "the shell had a terminal of its own" grep -q '^/dev/' "$dir/terminal.out"
claim "and its exit code came through: $code" test "$code" = 7

chapter "A clean end"
show shimctl rm -f clock brief
show shimctl ps -a
kill -TERM "$daemon"
wait "$daemon" 2>/dev/null || true
say "the keeper, which forks the shims, outlives the daemon on purpose; here it goes, too"
for keeper in $(keepers); do kill -TERM "$keeper" 2>/dev/null || true; done
claim "no process is left: no daemon, no shim, no keeper, no container" until_holds eval 'test -z "$(long_lived)"'
claim "no mount is left" test -z "$(mounts)"
claim "no container's cgroup is left" test -z "$(cgroups | grep "/$ns/" || true)"
claim "no bundle is left" test -z "$(ls -A "$dir/run/io.containerd.runtime.v2.task/$ns" 2>/dev/null)"
claim "no runc state is left" test -z "$(ls -A "$dir/run/runc/$ns" 2>/dev/null)"

chapter "Every claim held."
