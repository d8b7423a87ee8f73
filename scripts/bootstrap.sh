#!/usr/bin/env bash
# bootstrap.sh [build|kafka|flink|streams|s3|hdfs|chaos|lint]…: makes sure that what the project needs is on this machine (default: build).
#
#   build   Rust, a C and a C++ compiler, make, libclang, pkg-config, headers of OpenSSL and zlib; RocksDB, and a .cargo/config.toml that says where it is
#   kafka   a JDK from 17 on and Maven, for tests and benchmarks with a real broker; the program openssl, for a test's certificates
#   flink   a JDK and Maven as well, for the peer of `make bench`; streams for that of `make bench-failover`
#   s3      Python from 3.10 on with venv, for the S3 server of the tests
#   hdfs    a JDK from 17 on and Maven, for the HDFS of the tests
#   chaos   nftables, for lost packets: on Linux and for root, since nobody else may use it
#   lint    rustfmt and clippy
#
# What is there is left alone and costs a few milliseconds. What is missing is installed by apt-get where that is possible
# (root on Debian or Ubuntu); elsewhere it is named, with exit code 1.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

missing_packages=() # Debian's names
missing_words=()    # what to tell people elsewhere
need() { # need PACKAGE WORDS: notes what is missing
  missing_packages+=("$1")
  missing_words+=("$2")
}
have() { command -v "$1" >/dev/null 2>&1; }
have_header() { # have_header FILE: in the compiler's usual places
  local folder
  for folder in /usr/include /usr/include/*-linux-gnu* /usr/local/include /opt/homebrew/include /opt/homebrew/opt/openssl@3/include; do
    [ -e "$folder/$1" ] && return 0
  done
  return 1
}
have_libclang() {
  local file
  for file in ${LIBCLANG_PATH:+"$LIBCLANG_PATH"/libclang*} /usr/lib/llvm-*/lib/libclang* /usr/lib/*-linux-gnu/libclang* \
      /usr/lib64/libclang* /usr/lib/libclang* /usr/local/lib/libclang* /opt/homebrew/opt/llvm/lib/libclang* \
      /Library/Developer/CommandLineTools/usr/lib/libclang*; do
    # Not libclang-cpp, which other packages bring along: bindgen needs the C interface.
    case ${file##*/} in libclang.so | libclang.so.* | libclang-[0-9]* | libclang.dylib) [ -e "$file" ] && return 0 ;; esac
  done
  return 1
}
rust_is_recent() { # true when the cargo in use is at least the workspace's rust-version
  have cargo && have rustc || return 1
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../Cargo.toml")
  found=$(rustc --version 2>/dev/null) || return 1
  found=${found#rustc }
  found=${found%%[ -]*}
  [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ]
}
java_is_recent() { # true for a JDK from 17 on (javac, not only java)
  have java && have javac || return 1
  local home version
  home=$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")
  version=$(sed -n 's/^JAVA_VERSION="\([0-9]*\).*/\1/p' "$home/release" 2>/dev/null || true)
  if [ -z "$version" ]; then version=$(javac -version 2>&1 | sed 's/[^0-9]*\([0-9]*\).*/\1/'); fi
  [ "${version:-0}" -ge 17 ]
}

check_build() {
  have cc || need gcc "a C compiler"
  have c++ || need g++ "a C++ compiler"
  have make || need make "make"
  have pkg-config || need pkg-config "pkg-config"
  have_libclang || need libclang-dev "libclang (bindings of RocksDB)"
  have_header openssl/ssl.h || need libssl-dev "OpenSSL with headers"
  have_header zlib.h || need zlib1g-dev "zlib with headers"
}
check_java() {
  java_is_recent || need default-jdk-headless "a JDK from 17 on"
  have mvn || need maven "Apache Maven"
}

check_openssl() { have openssl || need openssl "the program openssl"; }

check_python() {
  if have python3 && python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then return 0; fi
  need python3-venv "Python from 3.10 on with venv"
}

check_chaos() {
  if [ "$(uname)" != Linux ] || [ "$(id -u)" != 0 ]; then return 0; fi
  have nft || need nftables "nft (nftables)"
}

install_missing() {
  [ "${#missing_packages[@]}" -gt 0 ] || return 0
  if ! have apt-get || [ "$(id -u)" != 0 ]; then
    echo "bootstrap: please install:" >&2
    printf '  - %s\n' "${missing_words[@]}" >&2
    if have apt-get; then echo "on this machine: sudo apt-get install ${missing_packages[*]}" >&2; fi
    exit 1
  fi
  echo "bootstrap: installing ${missing_packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing_packages[@]}" >/dev/null
}

install_rust() {
  if ! rust_is_recent && [ -r "$HOME/.cargo/env" ]; then . "$HOME/.cargo/env"; fi
  if rust_is_recent; then return 0; fi
  local wanted
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../Cargo.toml")
  if ! have rustup && have apt-get && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    if apt-cache show rustup >/dev/null 2>&1; then
      echo "bootstrap: installing rustup"
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rustup >/dev/null
    fi
  fi
  if have rustup; then
    echo "bootstrap: installing Rust by rustup"
    rustup toolchain install stable --profile minimal --component rustfmt --component clippy
    rustup default >/dev/null 2>&1 || rustup default stable
  fi
  if ! rust_is_recent; then
    echo "bootstrap: Rust $wanted or later is needed; get it by rustup (https://rustup.rs), then run this again" >&2
    exit 1
  fi
}

install_lint() {
  if have cargo-fmt && have cargo-clippy && cargo-fmt --version >/dev/null 2>&1 && cargo-clippy --version >/dev/null 2>&1; then return 0; fi
  if have rustup; then
    rustup component add rustfmt clippy
  else
    need rustfmt "rustfmt"
    need rust-clippy "clippy"
    install_missing
  fi
}

# Cargo called by hand finds the same target folder and the same RocksDB as the scripts.
configure_cargo() {
  local target=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/streamshield/target} config=$here/../.cargo/config.toml wanted
  wanted=$(printf '# Written by scripts/bootstrap.sh.\n[build]\ntarget-dir = "%s"\n' "$target")
  if [ "$(uname)" = Linux ]; then
    "$here/rocksdb.sh" "$target/rocksdb"
    wanted+=$(printf '\n[env]\nROCKSDB_LIB_DIR = "%s/rocksdb"\nROCKSDB_STATIC = "1"\n' "$target")
  fi
  if [ "$(cat "$config" 2>/dev/null)" != "$wanted" ]; then
    mkdir -p "${config%/*}"
    printf '%s\n' "$wanted" >"$config"
  fi
}

[ "$#" -gt 0 ] || set -- build
for what in "$@"; do
  case $what in
    build) check_build ;;
    kafka) check_java; check_openssl ;;
    flink | streams | hdfs) check_java ;;
    s3) check_python ;;
    chaos) check_chaos ;;
    lint) ;;
    *) echo "usage: bootstrap.sh [build|kafka|flink|streams|s3|hdfs|chaos|lint]…" >&2; exit 2 ;;
  esac
done
install_missing
case " $* " in *" build "*) install_rust ;; esac
case " $* " in *" lint "*) install_lint ;; esac
case " $* " in *" build "*) configure_cargo ;; esac
