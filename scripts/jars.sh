#!/usr/bin/env bash
# jars.sh NAME: makes sure that the jars of scripts/NAME/pom.xml lie in the user's cache, and prints their folder.
#
# Done once: Maven copies into a folder beside it that is renamed when it is complete, so that an interrupted download is
# never taken for a finished one. The folder carries the pom's checksum: a changed version fetches anew.
set -euo pipefail
name=${1:?which: kafka, flink, streams or hdfs}
here=$(cd "$(dirname "$0")" && pwd)
pom=$here/$name/pom.xml
cache=${STREAMSHIELD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/streamshield}
read -r sum _ < <(cksum <"$pom")
jars=$cache/$name-$sum
if [ ! -d "$jars" ]; then
  mkdir -p "$cache"
  exec 9>"$cache/$name.lock"
  flock 9
  if [ ! -d "$jars" ]; then
    "$here/bootstrap.sh" "$name" >&2
    echo "fetching the jars of $name into $jars (once)" >&2
    rm -rf "$jars.part"
    mkdir -p "$jars.part/tmp"
    if ! MAVEN_OPTS="-Djava.io.tmpdir=$jars.part/tmp ${MAVEN_OPTS:-}" mvn -B -q -f "$pom" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$jars.part" >"$jars.part/tmp/log" 2>&1; then
      tail -n 30 "$jars.part/tmp/log" >&2
      exit 1
    fi
    rm -rf "$jars.part/tmp"
    mv "$jars.part" "$jars"
  fi
fi
echo "$jars"
