#!/usr/bin/env bash
# s3.sh start DIR [--port N]   starts an S3 server on loopback, with a bucket `streamshield`, and prints its endpoint
# s3.sh stop DIR [--wipe]      stops it by its process id; --wipe removes the folder
#
# For tests: moto, from PyPI, in a virtual environment of its own in the user's cache. It keeps objects in memory and checks no
# signatures; conditional writes, multipart uploads, paged listings and ranged reads are those of S3. Ready in about a second.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/service.sh"

[ "$#" -ge 2 ] || usage
command=$1 dir=$2
shift 2

# Installed once: into a folder with the checksum of its list, which gets its last file when all is there.
environment() {
  local cache sum found
  cache=${STREAMSHIELD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/streamshield}
  read -r sum _ < <(cksum <"$here/s3/requirements.txt")
  found=$cache/s3-$sum
  if [ ! -f "$found/complete" ]; then
    mkdir -p "$cache"
    exec 9>"$cache/s3.lock"
    flock 9
    if [ ! -f "$found/complete" ]; then
      "$here/bootstrap.sh" s3 >&2
      echo "installing the S3 server of the tests into $found (once)" >&2
      rm -rf "$found"
      python3 -m venv "$found"
      "$found/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/s3/requirements.txt" >&2
      touch "$found/complete"
    fi
  fi
  echo "$found"
}

start() {
  local port="" python pid try
  while [ "$#" -gt 0 ]; do
    case $1 in
      --port) port=$2; shift 2 ;;
      *) usage ;;
    esac
  done
  python=$(environment)/bin/python
  mkdir -p "$dir/tmp"
  dir=$(cd "$dir" && pwd)
  if runs "$dir/pid"; then
    echo "an S3 server already runs in $dir" >&2
    exit 1
  fi
  if [ -z "$port" ]; then port=$(choose_port); fi
  # A session of its own: Ctrl-C in a terminal must not reach it before what uses it.
  TMPDIR=$dir/tmp AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=us-east-1 \
    setsid "$python" -m moto.server -H 127.0.0.1 -p "$port" >"$dir/server.log" 2>&1 </dev/null &
  pid=$!
  echo "$pid" >"$dir/pid"
  for try in $(seq 1 600); do
    if ! kill -0 "$pid" 2>/dev/null; then
      echo "the S3 server ended at its start:" >&2
      tail -n 20 "$dir/server.log" >&2
      stop
      exit 1
    fi
    if ! port_is_free "$port"; then break; fi
    if [ "$try" = 600 ]; then
      echo "the S3 server was not ready in 60 s, see $dir/server.log" >&2
      stop
      exit 1
    fi
    sleep 0.1
  done
  "$python" -c 'import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], method="PUT"), timeout=30)' \
    "http://127.0.0.1:$port/streamshield"
  echo "http://127.0.0.1:$port"
}

stop() {
  local pid
  if [ -f "$dir/pid" ]; then
    pid=$(cat "$dir/pid")
    kill -TERM "$pid" 2>/dev/null || true
    wait_gone "$pid" 5
    rm -f "$dir/pid"
  fi
  if [ "${1:-}" = --wipe ]; then
    rm -rf "$dir/tmp" "$dir/server.log"
    rmdir "$dir" 2>/dev/null || true
  fi
}

case $command in
  start) start "$@" ;;
  stop) stop "$@" ;;
  *) usage ;;
esac
