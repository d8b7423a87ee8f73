#!/usr/bin/env bash
# hdfs.sh start DIR [--port N]  starts a small HDFS (one name node, one data node) on loopback and prints its URL
# hdfs.sh stop DIR [--wipe]     stops it by its process id; --wipe removes its data. hdfs.sh name-node DIR away|back: only its name node
#
# For tests. Without --port the name node takes a free one. Needs no more than a JDK; the jars come from the user's cache (scripts/jars.sh). Ready in 5 to 12 s.
# Environment: HDFS_HEAP (384m).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/service.sh"

[ "$#" -ge 2 ] || usage
command=$1 dir=$2
shift 2

start() {
  local classpath pid try port=0 opens=() package
  while [ "$#" -gt 0 ]; do
    case $1 in
      --port) port=$2; shift 2 ;;
      *) usage ;;
    esac
  done
  classpath=$("$here/classes.sh" hdfs)
  mkdir -p "$dir/tmp"
  dir=$(cd "$dir" && pwd)
  if runs "$dir/pid"; then
    echo "an HDFS already runs in $dir" >&2
    exit 1
  fi
  rm -f "$dir/address" "$dir/commands"
  mkfifo "$dir/commands"
  for package in java.lang java.util java.net java.nio; do opens+=("--add-opens=java.base/$package=ALL-UNNAMED"); done
  # A session of its own: Ctrl-C in a terminal must not reach it before what uses it.
  cd "$dir/tmp"
  setsid java -Xmx"${HDFS_HEAP:-384m}" -Xss512k -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData "${opens[@]}" \
    -Djava.awt.headless=true -Djava.net.preferIPv4Stack=true -Djava.io.tmpdir="$dir/tmp" \
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$classpath" Hdfs "$dir" "$port" >"$dir/server.log" 2>&1 <>"$dir/commands" &
  pid=$!
  echo "$pid" >"$dir/pid"
  for try in $(seq 1 1200); do
    if [ -s "$dir/address" ]; then break; fi
    if ! kill -0 "$pid" 2>/dev/null; then
      echo "HDFS ended at its start:" >&2
      tail -n 20 "$dir/server.log" >&2
      stop
      exit 1
    fi
    if [ "$try" = 1200 ]; then
      echo "HDFS was not ready in 120 s, see $dir/server.log" >&2
      stop
      exit 1
    fi
    sleep 0.1
  done
  cat "$dir/address"
}

stop() {
  local pid
  if [ -f "$dir/pid" ]; then
    pid=$(cat "$dir/pid")
    # An orderly end takes the mini cluster many seconds and leaves nothing that a test would want.
    kill -KILL "$pid" 2>/dev/null || true
    wait_gone "$pid" 10
    rm -f "$dir/pid" "$dir/address" "$dir/commands"
  fi
  if [ "${1:-}" = --wipe ]; then
    rm -rf "$dir/tmp" "$dir/data" "$dir/server.log"
    rmdir "$dir" 2>/dev/null || true
  fi
}

# The server takes its address file away with the name node, and writes it when that serves again.
name_node() {
  local try
  if ! runs "$dir/pid"; then
    echo "no HDFS runs in $dir" >&2
    exit 1
  fi
  case ${1:-} in
    away | back) echo "$1" >"$dir/commands" ;;
    *) usage ;;
  esac
  for try in $(seq 1 1200); do
    if [ "$1" = away ] && [ ! -e "$dir/address" ]; then return 0; fi
    if [ "$1" = back ] && [ -s "$dir/address" ]; then return 0; fi
    if ! runs "$dir/pid"; then break; fi
    sleep 0.1
  done
  echo "the name node was not $1 in 120 s, see $dir/server.log" >&2
  exit 1
}

case $command in
  start) start "$@" ;;
  stop) stop "$@" ;;
  name-node) name_node "$@" ;;
  *) usage ;;
esac
