#!/usr/bin/env bash
# From a fresh machine to a server that answers: installs the packages, builds, fetches a model and
# serves it on 127.0.0.1:8000 (gRPC on 8001).
#
#   scripts/quickstart.sh                        the default model
#   scripts/quickstart.sh smollm2-135m           another one that scripts/fetch_models.py knows
#   scripts/quickstart.sh MODEL --http-port 80   what follows goes to `longstride serve`
set -euo pipefail
cd "$(dirname "$0")/.."

readonly DEFAULT_MODEL=gemma3-270m
model="${1:-$DEFAULT_MODEL}"
[[ $# -gt 0 ]] && shift

case "$model" in
  gemma3-270m) file=models/gemma-3-270m-q4_k_m.gguf ;;
  smollm2-135m) file=models/SmolLM2-135M-Instruct.Q4_1.gguf ;;
  *)
    echo "quickstart.sh: unknown model '$model'; known are gemma3-270m, smollm2-135m" >&2
    exit 1
    ;;
esac

scripts/setup.sh
cmake --preset release > /dev/null
cmake --build --preset release
python3 scripts/fetch_models.py "$model"
exec build/release/server/longstride serve "$file" --print-example "$@"
