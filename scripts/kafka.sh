#!/usr/bin/env bash
# kafka.sh start DIR [--port N] [--nodes N]   starts a real Apache Kafka (KRaft) on loopback and prints its address
# kafka.sh stop DIR [--kill] [--wipe]         stops it by its process ids: TERM, or KILL as a crash would; --wipe removes its data
#
# For tests and benchmarks: 1 or 3 nodes, small heaps, short time-outs. Needs no more than a JDK; the jars come from the
# user's cache (scripts/jars.sh). Without --port a free one is chosen. Started again on the same DIR it finds its data.
# A start takes 2 to 5 s; the first one also writes a class-data archive that makes later ones faster.
# Environment: KAFKA_HEAP (256m), KAFKA_EXTRA (more lines of server.properties; of two with one name the later counts), KAFKA_SCRAM (a user that the first
# start makes: SCRAM-SHA-512=[name=…,password=…]), KAFKA_JVM_PERFORMANCE_OPTS (for a broker of short life: the quick compiler alone; a measurement wants the
# JVM's own choice).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/service.sh"

[ "$#" -ge 2 ] || usage
command=$1 dir=$2
shift 2

# Ports of node i: listener port+i-1, controller port+100+i.
offsets() { # offsets NODES
  local i
  for i in $(seq 1 "$1"); do echo $((i - 1)) $((100 + i)); done
}

write_properties() { # write_properties NODE PORT NODES
  local node=$1 port=$2 nodes=$3 replicas=1 in_sync=1 voters="" i
  if [ "$nodes" -ge 3 ]; then replicas=3 in_sync=2; fi
  for i in $(seq 1 "$nodes"); do voters+="${voters:+,}$i@127.0.0.1:$((port + 100 + i))"; done
  sed "s/@replicas@/$replicas/; s/@in_sync@/$in_sync/" "$here/kafka/broker.properties"
  cat <<P
node.id=$node
listeners=PLAINTEXT://127.0.0.1:$((port + node - 1)),CONTROLLER://127.0.0.1:$((port + 100 + node))
advertised.listeners=PLAINTEXT://127.0.0.1:$((port + node - 1))
controller.quorum.voters=$voters
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$dir/n$node/data
broker.session.timeout.ms=2000
controlled.shutdown.enable=$([ "$nodes" -gt 1 ] && echo true || echo false)
${KAFKA_EXTRA:-}
P
}

start() {
  local port="" nodes=1 jars node folder classpath archive options pid deadline
  while [ "$#" -gt 0 ]; do
    case $1 in
      --port) port=$2; shift 2 ;;
      --nodes) nodes=$2; shift 2 ;;
      *) usage ;;
    esac
  done
  jars=$("$here/jars.sh" kafka)
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  if [ -z "$port" ] && [ -f "$dir/port" ]; then port=$(cat "$dir/port"); fi
  if [ -z "$port" ]; then port=$(choose_port $(offsets "$nodes")); fi
  echo "$port" >"$dir/port"
  classpath=$(printf '%s:' "$jars"/*.jar)
  archive=$jars/classes-$(java -version 2>&1 | cksum | cut -d' ' -f1).jsa
  options=(-Xmx"${KAFKA_HEAP:-256m}" -Xms48m -Xss512k ${KAFKA_JVM_PERFORMANCE_OPTS--XX:+UseSerialGC -XX:TieredStopAtLevel=1} -XX:-UsePerfData
    -Djava.awt.headless=true -Djava.net.preferIPv4Stack=true -Djava.io.tmpdir="$dir"
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info
    -Dorg.slf4j.simpleLogger.showDateTime=true "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS")
  for node in $(seq 1 "$nodes"); do
    folder=$dir/n$node
    mkdir -p "$folder"
    if runs "$folder/pid"; then
      echo "node $node already runs in $dir" >&2
      exit 1
    fi
    write_properties "$node" "$port" "$nodes" >"$folder/server.properties"
    if [ ! -f "$folder/data/meta.properties" ]; then
      java "${options[@]}" -cp "$classpath" kafka.tools.StorageTool format -t MkU3OEVBNTcwNTJENDM2Qg \
        -c "$folder/server.properties" ${KAFKA_SCRAM:+--add-scram "$KAFKA_SCRAM"} \
        >"$folder/format.log" 2>&1 || { cat "$folder/format.log" >&2; exit 1; }
    fi
    local class_data=()
    if [ -s "$archive" ]; then
      class_data=(-XX:SharedArchiveFile="$archive" -Xshare:auto)
    elif [ "$node" = 1 ]; then
      class_data=(-XX:ArchiveClassesAtExit="$folder/classes.jsa")
      echo "$archive" >"$folder/archive"
    fi
    # A session of its own: Ctrl-C in a terminal must not reach the broker before what uses it.
    setsid java "${options[@]}" ${class_data[@]+"${class_data[@]}"} -cp "$classpath" kafka.Kafka "$folder/server.properties" \
      >"$folder/server.log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
  done
  deadline=$((SECONDS + 90))
  for node in $(seq 1 "$nodes"); do
    folder=$dir/n$node
    pid=$(cat "$folder/pid")
    until grep -q 'Kafka Server started' "$folder/server.log"; do
      if ! kill -0 "$pid" 2>/dev/null; then
        echo "Kafka node $node ended at its start:" >&2
        tail -n 20 "$folder/server.log" >&2
        stop
        exit 1
      fi
      if [ "$SECONDS" -ge "$deadline" ]; then
        echo "Kafka node $node was not ready in 90 s, see $folder/server.log" >&2
        stop
        exit 1
      fi
      sleep 0.05
    done
  done
  echo "127.0.0.1:$port"
}

stop() {
  local signal=TERM wipe=0 option file pid pids=()
  for option in "$@"; do
    case $option in
      --kill) signal=KILL ;;
      --wipe) wipe=1 ;;
      *) usage ;;
    esac
  done
  for file in "$dir"/n*/pid; do
    if [ -f "$file" ]; then pids+=("$(cat "$file")"); fi
  done
  for pid in ${pids[@]+"${pids[@]}"}; do kill -"$signal" "$pid" 2>/dev/null || true; done
  for pid in ${pids[@]+"${pids[@]}"}; do wait_gone "$pid" 15; done
  for file in "$dir"/n*/archive; do # the class-data archive that this run wrote at its end
    [ -f "$file" ] || continue
    if [ -s "${file%archive}classes.jsa" ] && [ ! -s "$(cat "$file")" ]; then mv "${file%archive}classes.jsa" "$(cat "$file")" || true; fi
    rm -f "$file" "${file%archive}classes.jsa"
  done
  rm -f "$dir"/n*/pid
  if [ "$wipe" = 1 ]; then
    rm -rf "$dir"/n* "$dir/port"
    rmdir "$dir" 2>/dev/null || true
  fi
}

case $command in
  start) start "$@" ;;
  stop) stop "$@" ;;
  *) usage ;;
esac
