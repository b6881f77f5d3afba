#!/usr/bin/env bash
# Makes the Python environment of the tests in .cache/test-venv, or leaves it as it is when
# tests/requirements.txt has not changed.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly VENV=.cache/test-venv
stamp="$(sha256sum tests/requirements.txt | cut -d ' ' -f 1)"
[[ -f "$VENV/stamp" && "$(cat "$VENV/stamp")" == "$stamp" ]] && exit 0

rm -rf "$VENV"
python3 -m venv "$VENV"
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
if ! "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
  --requirement tests/requirements.txt > "$log" 2>&1; then
  sed -E 's#[a-z]+://[^ ]+#(address)#g' "$log" | tail -n 20 >&2
  echo "test_venv.sh: the packages of tests/requirements.txt could not be installed; see above" >&2
  exit 1
fi
echo "$stamp" > "$VENV/stamp"
