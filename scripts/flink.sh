#!/usr/bin/env bash
# flink.sh prepare           fetches Flink's jars and compiles the peer of `make bench`
# flink.sh run SQL FOLDER    runs one SQL job to its end on Flink in this process (exec: its id and its CPU time are the caller's to watch)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
jars=$("$here/jars.sh" flink)
read -r sum _ < <(cksum <"$here/flink/Peer.java")
classes=$jars/peer-$sum
case ${1:-} in
  prepare)
    if [ ! -f "$classes/Peer.class" ]; then
      mkdir -p "$classes"
      javac -d "$classes" -cp "$jars/*" "$here/flink/Peer.java"
    fi
    ;;
  run)
    sql=$2 folder=$3
    mkdir -p "$folder"
    opens=()
    for package in java.lang java.util java.nio java.util.concurrent java.time java.net java.io; do
      opens+=("--add-opens=java.base/$package=ALL-UNNAMED")
    done
    # shellcheck disable=SC2086
    exec java -Xmx"${FLINK_HEAP:-1g}" -XX:+UseG1GC -XX:-UsePerfData ${FLINK_JAVA_OPTIONS:-} "${opens[@]}" -Djava.io.tmpdir="$folder" \
      -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$classes:$jars/*" Peer "$sql" "$folder"
    ;;
  *)
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
    ;;
esac
