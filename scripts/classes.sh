#!/usr/bin/env bash
# classes.sh NAME: compiles scripts/NAME/*.java against the jars of scripts/NAME/pom.xml, and prints the class path of both.
#
# Done once: the folder of the classes carries the sources' checksum, and gets its name when they are all there.
set -euo pipefail
name=${1:?which: flink, streams or hdfs}
here=$(cd "$(dirname "$0")" && pwd)
jars=$("$here/jars.sh" "$name")
read -r sum _ < <(cat "$here/$name"/*.java | cksum)
classes=$jars/compiled-$sum
if [ ! -d "$classes" ]; then
  rm -rf "$classes.$$"
  mkdir -p "$classes.$$"
  javac -nowarn -d "$classes.$$" -cp "$jars/*" "$here/$name"/*.java >&2
  # Another one may have been quicker.
  if [ ! -d "$classes" ]; then mv "$classes.$$" "$classes"; else rm -rf "$classes.$$"; fi
fi
echo "$classes:$jars/*"
