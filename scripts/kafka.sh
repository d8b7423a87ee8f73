#!/usr/bin/env bash
# kafka.sh start DIR [--port N] [--nodes N]   starts a real Apache Kafka (KRaft) on loopback and prints its address
# kafka.sh stop DIR [--kill] [--wipe]         stops it by its process ids: TERM, or KILL as a crash would; --wipe removes its data
#
# For tests and benchmarks: 1 or 3 nodes, small heaps, short time-outs. Needs no more than a JDK; the jars come from the
# user's cache (scripts/jars.sh). Without --port a free one is chosen. Started again on the same DIR it finds its data.
# A start takes 2 to 5 s; the first one also writes a class-data archive that makes later ones faster.
# Environment: KAFKA_HEAP (256m), KAFKA_EXTRA (more lines of server.properties).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
[ "$#" -ge 2 ] || usage
command=$1 dir=$2
shift 2

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Ports of node i: listener port+i-1, controller port+100+i. Below the range from which the system gives out client ports.
choose_port() {
  local try candidate i
  for try in $(seq 1 100); do
    candidate=$((10000 + (RANDOM * 32768 + RANDOM) % 20000))
    for i in $(seq 1 "$1"); do
      port_is_free $((candidate + i - 1)) && port_is_free $((candidate + 100 + i)) || continue 2
    done
    echo "$candidate"
    return 0
  done
  echo "no free port found" >&2
  return 1
}

write_properties() { # write_properties NODE PORT NODES
  local node=$1 port=$2 nodes=$3 replicas=1 in_sync=1 voters="" i
  if [ "$nodes" -ge 3 ]; then replicas=3 in_sync=2; fi
  for i in $(seq 1 "$nodes"); do voters+="${voters:+,}$i@127.0.0.1:$((port + 100 + i))"; done
  cat <<P
process.roles=broker,controller
node.id=$node
listeners=PLAINTEXT://127.0.0.1:$((port + node - 1)),CONTROLLER://127.0.0.1:$((port + 100 + node))
advertised.listeners=PLAINTEXT://127.0.0.1:$((port + node - 1))
controller.listener.names=CONTROLLER
controller.quorum.voters=$voters
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs=$dir/n$node/data
auto.create.topics.enable=false
default.replication.factor=$replicas
min.insync.replicas=$in_sync
offsets.topic.replication.factor=$replicas
offsets.topic.num.partitions=2
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$in_sync
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=$replicas
share.coordinator.state.topic.min.isr=$in_sync
share.coordinator.state.topic.num.partitions=1
# Small: the machine is shared with what is measured.
num.network.threads=1
num.io.threads=2
background.threads=1
num.recovery.threads.per.data.dir=1
num.replica.fetchers=1
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=8388608
log.cleaner.io.buffer.size=262144
# Quick: tests wait for these.
log.cleaner.backoff.ms=500
log.initial.task.delay.ms=500
group.initial.rebalance.delay.ms=0
group.streams.initial.rebalance.delay.ms=0
group.coordinator.append.linger.ms=0
broker.heartbeat.interval.ms=200
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
  if [ -z "$port" ]; then port=$(choose_port "$nodes"); fi
  echo "$port" >"$dir/port"
  classpath=$(printf '%s:' "$jars"/*.jar)
  archive=$jars/classes-$(java -version 2>&1 | cksum | cut -d' ' -f1).jsa
  options=(-Xmx"${KAFKA_HEAP:-256m}" -Xms48m -Xss512k -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData
    -Djava.awt.headless=true -Djava.net.preferIPv4Stack=true -Djava.io.tmpdir="$dir"
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info
    -Dorg.slf4j.simpleLogger.showDateTime=true "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS")
  for node in $(seq 1 "$nodes"); do
    folder=$dir/n$node
    mkdir -p "$folder"
    if [ -f "$folder/pid" ] && kill -0 "$(cat "$folder/pid")" 2>/dev/null; then
      echo "node $node already runs in $dir" >&2
      exit 1
    fi
    write_properties "$node" "$port" "$nodes" >"$folder/server.properties"
    if [ ! -f "$folder/data/meta.properties" ]; then
      java "${options[@]}" -cp "$classpath" kafka.tools.StorageTool format -t MkU3OEVBNTcwNTJENDM2Qg \
        -c "$folder/server.properties" >"$folder/format.log" 2>&1 || { cat "$folder/format.log" >&2; exit 1; }
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
  local signal=TERM wipe=0 option file pid pids=() try
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
  for pid in ${pids[@]+"${pids[@]}"}; do
    for try in $(seq 1 400); do
      kill -0 "$pid" 2>/dev/null || break
      if [ "$try" = 300 ]; then kill -KILL "$pid" 2>/dev/null || true; fi
      sleep 0.05
    done
  done
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
