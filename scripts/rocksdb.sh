#!/usr/bin/env bash
# rocksdb.sh FOLDER: builds RocksDB there, once for each version (docs/decisions/0013-rocksdb-in-pieces.md).
#
# Its crate compiles 343 files one by one, and most of their time goes into the same headers. Here the same files with the same definitions are included by a few,
# as RocksDB's own target `unity_test` does. The sources are those of the crate; its build script takes the library from ROCKSDB_LIB_DIR.
set -euo pipefail
folder=${1:?which folder?}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
PIECES=16 # each takes up to a gigabyte while it is compiled, as many at a time as there are processors

version=$(sed -n '/^name = "librocksdb-sys"$/{n;s/^version = "\(.*\)"$/\1/p;}' Cargo.lock)
is_there() { [ "$(cat "$folder/version" 2>/dev/null)" = "$version" ]; }
if is_there; then exit 0; fi
mkdir -p "$folder"
exec 9>"$folder/lock"
flock 9
if is_there; then exit 0; fi

start=$SECONDS part=$folder/part
echo "building RocksDB ($version) in $folder, once"
rm -rf "$part"
mkdir "$part"
crates=$(cargo metadata --locked --format-version 1 | grep -o '"manifest_path":"[^"]*"' | sed 's/^"manifest_path":"\(.*\)\/Cargo.toml"$/\1/')
of() { grep "/$1-[0-9][^/]*\$" <<<"$crates"; }
crate=$(of librocksdb-sys)
sed -e '/build_version.cc/d' -e 's|^\(.*\)$|#include "rocksdb/\1"|' "$crate/rocksdb_lib_sources.txt" >"$part/all"
echo '#include "build_version.cc"' >>"$part/all"
split --number="l/$PIECES" --additional-suffix=.cc "$part/all" "$part/piece-"
printf '%s\n' -std=c++20 -O2 -fPIC -ffunction-sections -fdata-sections -w -include cstdint \
  -DNDEBUG=1 -DHAVE_ALIGNED_NEW -DHAVE_UINT128_EXTENSION -DLZ4=1 -DZSTD=1 -DOS_LINUX -DROCKSDB_PLATFORM_POSIX -DROCKSDB_LIB_IO_POSIX \
  -DROCKSDB_SCHED_GETCPU_PRESENT -DROCKSDB_AUXV_GETAUXVAL_PRESENT -DROCKSDB_FALLOCATE_PRESENT -DROCKSDB_RANGESYNC_PRESENT \
  "-I$crate" "-I$crate/rocksdb" "-I$crate/rocksdb/include" "-I$(of lz4-sys)/liblz4/lib" "-I$(of zstd-sys)/zstd/lib" >"$part/flags"
find "$part" -name 'piece-*.cc' -print0 | xargs -0 -P "$(nproc)" -I {} "${CXX:-c++}" "@$part/flags" -c {} -o {}.o
ar crs "$part/librocksdb.a" "$part"/*.o
mv "$part/librocksdb.a" "$folder/"
rm -rf "$part"
echo "$version" >"$folder/version"
echo "building RocksDB: $((SECONDS - start)) s"
