#!/usr/bin/env bash
# test.sh [CARGO TEST ARGUMENTS]: builds and runs all tests, with a real Kafka on loopback for those that need one.
#
# Prints how long each phase took. With STREAMSHIELD_SKIP_KAFKA=1 no broker is started: the tests that need one are left out,
# and the last lines say which.
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
phase "test" "$here/with-kafka.sh" cargo test --release --workspace "$@"
if [ -s "$skipped" ]; then
  echo "$(wc -l <"$skipped") tests need Kafka and were left out (STREAMSHIELD_SKIP_KAFKA=1):"
  sort "$skipped" | sed 's/^/  /'
fi
