#!/usr/bin/env bash
# flink.sh prepare           fetches Flink's jars and compiles the peer of `make bench`
# flink.sh run SQL FOLDER    runs one SQL job to its end on Flink in this process (exec: its id and its CPU time are the caller's to watch)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in
  prepare) "$here/classes.sh" flink >/dev/null ;;
  run)
    sql=$2 folder=$3
    classpath=$("$here/classes.sh" flink)
    mkdir -p "$folder"
    opens=()
    for package in java.lang java.util java.nio java.util.concurrent java.time java.net java.io; do
      opens+=("--add-opens=java.base/$package=ALL-UNNAMED")
    done
    # shellcheck disable=SC2086
    exec java -Xmx"${FLINK_HEAP:-1g}" -XX:+UseG1GC -XX:-UsePerfData ${FLINK_JAVA_OPTIONS:-} "${opens[@]}" -Djava.io.tmpdir="$folder" \
      -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$classpath" Peer "$sql" "$folder"
    ;;
  *)
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
    ;;
esac
