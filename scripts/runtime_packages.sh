#!/usr/bin/env bash
# Prints the Debian packages that hold the shared libraries a program needs, one a line.
#
#   scripts/runtime_packages.sh build/release/server/longstride
set -euo pipefail

[[ $# -eq 1 && -x "$1" ]] || {
  echo "usage: scripts/runtime_packages.sh PROGRAM" >&2
  exit 2
}
missing="$(ldd "$1" | sed -n 's/^[[:space:]]*\([^ ]*\) => not found.*/\1/p')"
[[ -z "$missing" ]] || {
  echo "runtime_packages.sh: not found: $missing" >&2
  exit 1
}
# Packages may be registered under /lib or /usr/lib whatever the path that the loader found.
ldd "$1" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' | while read -r library; do
  real="$(readlink --canonicalize "$library")"
  owner="$(dpkg-query --search "$real" 2> /dev/null || dpkg-query --search "${real#/usr}" 2> /dev/null ||
    dpkg-query --search "$library")"
  echo "${owner%%:*}"
done | sort --unique
