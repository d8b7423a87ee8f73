#!/usr/bin/env bash
# with-services.sh COMMAND…: runs a command with a real S3 server and a real HDFS on loopback, and stops them afterwards.
#
# Their addresses are in STREAMSHIELD_S3 (an endpoint with a bucket `streamshield`) and STREAMSHIELD_HDFS (a URL). Where one of them is set
# already, that service is used and left alone. STREAMSHIELD_SKIP_S3=1 and STREAMSHIELD_SKIP_HDFS=1 start none.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)

s3="" hdfs="" starting=""
stop_services() {
  # Until it has started it cannot be stopped.
  if [ -n "$starting" ]; then wait "$starting" || true; fi
  if [ -n "$s3" ]; then "$here/s3.sh" stop "$s3" --wipe || true; fi
  if [ -n "$hdfs" ]; then "$here/hdfs.sh" stop "$hdfs" --wipe || true; fi
}
trap stop_services EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -z "${STREAMSHIELD_HDFS:-}" ] && [ "${STREAMSHIELD_SKIP_HDFS:-0}" != 1 ]; then
  "$here/bootstrap.sh" hdfs
  hdfs=$root/target/hdfs/$$
  mkdir -p "$hdfs"
  # It takes longest to start: meanwhile the other one does.
  "$here/hdfs.sh" start "$hdfs" >"$hdfs/started" &
  starting=$!
fi
if [ -z "${STREAMSHIELD_S3:-}" ] && [ "${STREAMSHIELD_SKIP_S3:-0}" != 1 ]; then
  s3=$root/target/s3/$$
  mkdir -p "$s3"
  STREAMSHIELD_S3=$("$here/s3.sh" start "$s3")
  export STREAMSHIELD_S3
fi
if [ -n "$hdfs" ]; then
  wait "$starting"
  starting=""
  STREAMSHIELD_HDFS=$(cat "$hdfs/started")
  export STREAMSHIELD_HDFS
  rm -f "$hdfs/started"
fi
"$@"
