#!/usr/bin/env bash
# streams.sh prepare       fetches Kafka Streams' jars and compiles the peer of `make bench-failover`
# streams.sh run ARGS…     runs one instance (exec: its id is the caller's to watch and to kill); ARGS are in streams/Peer.java
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
jars=$("$here/jars.sh" streams)
read -r sum _ < <(cksum <"$here/streams/Peer.java")
classes=$jars/peer-$sum
case ${1:-} in
  prepare)
    if [ ! -f "$classes/Peer.class" ]; then
      mkdir -p "$classes"
      javac -d "$classes" -cp "$jars/*" "$here/streams/Peer.java"
    fi
    ;;
  run)
    shift
    mkdir -p "$3/tmp"
    # shellcheck disable=SC2086
    exec java -Xmx"${STREAMS_HEAP:-256m}" -XX:+UseSerialGC -XX:-UsePerfData ${STREAMS_JAVA_OPTIONS:-} -Djava.io.tmpdir="$3/tmp" \
      -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dorg.slf4j.simpleLogger.showDateTime=true \
      "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS" -cp "$classes:$jars/*" Peer "$@"
    ;;
  *)
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
    ;;
esac
