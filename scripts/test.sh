#!/usr/bin/env bash
# Installs what is missing, builds everything and runs all tests.
#
#   scripts/test.sh                 all
#   scripts/test.sh -L fast         what follows goes to ctest
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh --tests
scripts/test_venv.sh
python3 scripts/fetch_models.py
cmake --preset cpu > /dev/null
cmake --build --preset cpu
LONGSTRIDE_TEST_MODELS="$PWD/models" ctest --preset cpu "$@"
