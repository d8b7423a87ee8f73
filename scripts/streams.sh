#!/usr/bin/env bash
# streams.sh prepare       fetches Kafka Streams' jars and compiles the peer of `make bench-failover`
# streams.sh run ARGS…     runs one instance (exec: its id is the caller's to watch and to kill); ARGS are in streams/Peer.java
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in
  prepare) "$here/classes.sh" streams >/dev/null ;;
  run)
    shift
    classpath=$("$here/classes.sh" streams)
    mkdir -p "$3/tmp"
    # shellcheck disable=SC2086
    exec java -Xmx"${STREAMS_HEAP:-256m}" -XX:+UseSerialGC -XX:-UsePerfData ${STREAMS_JAVA_OPTIONS:-} -Djava.io.tmpdir="$3/tmp" \
      -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dorg.slf4j.simpleLogger.showDateTime=true \
      "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS" -cp "$classpath" Peer "$@"
    ;;
  *)
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
    ;;
esac
