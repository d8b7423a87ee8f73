# service.sh: what kafka.sh, s3.sh and hdfs.sh share. To be sourced.

usage() { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# choose_port [OFFSET…]: a port that is free together with those at these offsets from it. Below the range from which the system gives out client ports.
choose_port() {
  local try candidate offset
  for try in $(seq 1 100); do
    candidate=$((10000 + (RANDOM * 32768 + RANDOM) % 20000))
    for offset in 0 "$@"; do
      port_is_free $((candidate + offset)) || continue 2
    done
    echo "$candidate"
    return 0
  done
  echo "no free port found" >&2
  return 1
}

runs() { [ -f "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; } # runs FILE: whether the process lives whose id is in it

# wait_gone PID SECONDS: waits for a process that has been told to end, and kills it when it has not by then.
wait_gone() {
  local try
  for try in $(seq 1 $(($2 * 20 + 100))); do
    kill -0 "$1" 2>/dev/null || break
    if [ "$try" = $(($2 * 20)) ]; then kill -KILL "$1" 2>/dev/null || true; fi
    sleep 0.05
  done
}
