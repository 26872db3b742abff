#!/usr/bin/env bash
# A program in a PID namespace with mounts of its own, and its own of some folders (workers.py sees that they are there);
# what it starts ends with it. Usage: worker.sh FOLDER:FOLDER:… PROGRAM ARGUMENT…
# Source: pid_namespaces(7), mount_namespaces(7), unshare(1).
set -euo pipefail
if [ "${1:-}" != --inside ]; then
    exec unshare --mount --pid --fork --kill-child --mount-proc --propagation private bash "$0" --inside "$@"
fi
IFS=: read -r -a places <<<"$2"
shift 2
for place in "${places[@]}"; do
    mount -t tmpfs -o mode=755 tmpfs "$place"
done
# This shell is PID 1, and reaps what nobody waits for. A program in the background would have no stdin.
"$@" <&0 &
wait $!
