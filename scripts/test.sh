#!/usr/bin/env bash
# test.sh [CARGO TEST ARGUMENTS]: builds and runs all tests, with a real Kafka, S3 server and HDFS on loopback for those that need one.
#
# Prints how long each phase took, and at the end how many states of small clusters were searched. With STREAMSHIELD_SKIP_KAFKA=1, STREAMSHIELD_SKIP_S3=1 or
# STREAMSHIELD_SKIP_HDFS=1 that service is not started: the tests that need it are left out, and the last lines say which.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/streamshield/target}
skipped=$(mktemp)
trap 'rm -f "$skipped"' EXIT
export STREAMSHIELD_SKIPPED_LIST=$skipped

phase() { # phase NAME COMMAND…
  local name=$1 start=$SECONDS status=0
  shift
  echo "==> $name"
  "$@" || status=$?
  echo "==> $name: $((SECONDS - start)) s$([ "$status" = 0 ] || echo " (failed)")"
  return "$status"
}

# Two builds of one set of packages with one set of features: the first makes the binaries that the tests start.
locked=()
if [ "${CI:-}" = true ]; then locked=(--locked); fi
phase "build" cargo build --release --workspace ${locked[@]+"${locked[@]}"}
phase "build tests" cargo test --release --workspace --no-run
if [ "${STREAMSHIELD_SKIP_KAFKA:-0}" != 1 ]; then phase "jars of Kafka" "$here/jars.sh" kafka; fi
if [ "${STREAMSHIELD_SKIP_HDFS:-0}" != 1 ]; then phase "jars of HDFS" "$here/jars.sh" hdfs; fi
began=$(date +%s)
if [ $# = 0 ]; then tests=("$here/halves.sh"); else tests=(cargo test --release --workspace "$@"); fi
phase "test" "$here/with-kafka.sh" "$here/with-services.sh" "${tests[@]}"
explored=target/bench/exploration.json
if [ -f "$explored" ] && [ "$(stat -c %Y "$explored")" -ge "$began" ]; then
  echo "every state that small clusters can reach ($explored):"
  cat "$explored"
fi
if [ -s "$skipped" ]; then
  echo "$(wc -l <"$skipped") tests were left out, because a service that they need was not wanted (STREAMSHIELD_SKIP_…=1):"
  sort "$skipped" | sed 's/^/  /'
fi
