#!/usr/bin/env bash
# with-kafka.sh COMMAND…: runs a command with a real Kafka on loopback in STREAMSHIELD_KAFKA, and stops it afterwards.
#
# Where STREAMSHIELD_KAFKA is set already, that broker is used and left alone. STREAMSHIELD_SKIP_KAFKA=1 starts none.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)

if [ -n "${STREAMSHIELD_KAFKA:-}" ] || [ "${STREAMSHIELD_SKIP_KAFKA:-0}" = 1 ]; then exec "$@"; fi

"$here/bootstrap.sh" kafka
folder=$root/target/kafka/$$
mkdir -p "$folder"
stop_kafka() { "$here/kafka.sh" stop "$folder" --wipe || true; }
trap stop_kafka EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
STREAMSHIELD_KAFKA=$("$here/kafka.sh" start "$folder")
export STREAMSHIELD_KAFKA
"$@"
