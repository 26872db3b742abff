#!/usr/bin/env bash
# Every fuzz target for so many seconds, on its corpus. A finding ends the run and is kept beside it. Usage: .ci/fuzz.sh [seconds]
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
seconds=${1:-30}
found=${TMPDIR:-/tmp}/shimd-fuzz
mkdir -p "$found"

for target in tests/fuzz/fuzz_*.py; do
    name=$(basename "$target" .py)
    name=${name#fuzz_}
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cp -r "tests/fuzz/corpus/$name/." "$work/" # what the fuzzer adds stays out of the tree
    echo "fuzzing $name for $seconds s"
    "${VENV:-.venv}/bin/python" -m "tests.fuzz.fuzz_$name" -max_total_time="$seconds" -artifact_prefix="$found/" "$work"
    rm -rf "$work"
done
rmdir "$found" 2>/dev/null || echo "earlier findings are in $found"
