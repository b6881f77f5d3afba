#!/usr/bin/env bash
# GPU checks and benchmarks on a machine that has a driver, python3 with PyTorch, and nothing of ours.
#   bench/gpu.sh pack [folder]            build here (needs nvcc) into a folder, default build-gpu
#   bench/gpu.sh run [folder] [part...]   there, from the root of the tree; all parts by default:
#     tests      every C++ test that uses the device
#     sanitize   compute-sanitizer's memcheck, racecheck and synccheck on a reduced set
#     attention  the float64 checks, then the table beside cuDNN and FlexAttention
#     linear     matrix products beside cuBLAS
#     portable   the tests with the portable kernels forced, then a table of both paths
#     server     `longstride` with --device cuda: tokens of MODELS beside the CPU's, speed of SHAPES
# Environment of run: LOGS (folder for full logs), MODELS (checkpoints; those absent are skipped),
# SHAPES (of bench/cuda/make_checkpoint.py), ATTENTION_ARGS, LINEAR_ARGS (of the benchmark scripts).
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-run}
folder=${2:-build-gpu}
parts=("${@:3}")
[[ ${#parts[@]} -gt 0 ]] || parts=(tests sanitize attention linear portable server)

tests=(cuda_product_tests kernels_tests decoder_test families_parity_tests fidelity_test sampling_test)
benches=(decode_loop prefill_selection_bench)
# What of them uses the device.
declare -A filters=([kernels_tests]='*cuda*:*Cuda*:*MakeBackend*' [families_parity_tests]='*Cuda*'
  [decoder_test]='*KvCache*:*ArchitectureTest*:*PolicyTest*:*TensorCores*:*RankedPattern*:*DualChunk*:*Repeatable*'
  [fidelity_test]='*LiveShadowCuda*' [sampling_test]='*Device*')

# The shared libraries that binaries need, without those of the C and C++ compilers.
libraries() {
  ldd "$@" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
    grep -vE '/(libc|libm|libpthread|libdl|librt|libstdc\+\+|libgcc_s|ld-linux[^/]*)\.so'
}

pack() {
  # The tests find their data from the root of the tree, wherever that is, and all binaries their
  # libraries (and those of these) beside them, so that python3 there keeps its own.
  # CI builds fewer head sizes; here all are.
  cmake --preset cuda -DLONGSTRIDE_BENCH=ON -DLONGSTRIDE_TEST_ROOT=. \
    "-DLONGSTRIDE_CUDA_HEAD_SIZES=64;80;96;128;192;256" \
    "-DLONGSTRIDE_CUDA_FP8_HEAD_SIZES=64;128;256" \
    -DCMAKE_BUILD_RPATH='$ORIGIN' -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags
  cmake --build --preset cuda --target longstride attention_gpu_check attention linear \
    "${benches[@]}" "${tests[@]}"
  local name unpacked
  unpacked=$(mktemp -d)
  for name in longstride attention_gpu_check libattention.so liblinear.so \
    "${benches[@]}" "${tests[@]}"; do
    strip -o "$unpacked/$name" "$(find build/cuda/{server,tests,bench} -type f -name "$name" -perm -u+x)"
  done
  libraries "$unpacked"/* | xargs -I{} cp -L {} "$unpacked"
  # One archive: the binaries share most of their code, and every byte travels.
  mkdir -p "$folder"
  tar -C "$unpacked" -cf - . | xz -T0 --lzma2=preset=6,dict=96MiB >"$folder/pack.tar.xz"
  rm -rf "$unpacked"
  du -h "$folder/pack.tar.xz"
}

# limited SECONDS LOG COMMAND...: the status of the command, its output in the log.
limited() {
  local seconds=$1 log=$2
  shift 2
  echo "\$ $*" >>"$log"
  timeout --kill-after=5 "$seconds" "$@" >>"$log" 2>&1
}

# say LINE...: now and in the table at the end.
say() { echo "$@" | tee -a "$logs/summary.txt"; }

# together NAME SECONDS COMMAND...: starts a job beside others; its log is $jobs/NAME.
together() {
  local name=$1 seconds=$2
  shift 2
  (
    status=0
    limited "$seconds" "$jobs/$name" "$@" || status=$?
    echo "status $status" >"$jobs/$name.status"
  ) &
}

# part_tests [LOG]
part_tests() {
  local name log=${1:-tests}
  jobs=$(mktemp -d)
  for name in "${tests[@]}"; do
    together "$name" "${TEST_SECONDS:-200}" "$bin/$name" --gtest_filter="${filters[$name]:-*}"
  done
  wait
  for name in "${tests[@]}"; do
    say "$name: $(cat "$jobs/$name.status"), $(grep -E '^\[  (PASSED |SKIPPED) \] [0-9]' "$jobs/$name" |
      tr '\n' ' ')"
    grep -q '^\[  PASSED' "$jobs/$name" || say "unfinished: $(tail -1 "$jobs/$name")"
    grep -E '^\[  FAILED  \].*ms\)$' "$jobs/$name" | head -12 | tee -a "$logs/summary.txt" || true
    cat "$jobs/$name" >>"$logs/$log.txt"
  done
}

# What the sanitizers run, words separated by |: a reduced set that reaches every kind of kernel.
declare -A sanitized=(
  [attention]='attention_gpu_check|window 100'
  [products]='cuda_product_tests|--gtest_filter=*BiasAccumulation*:*PartsOfSeveralTypes*:*WideTiles*'
  [experts]='cuda_product_tests|--gtest_filter=*MoeGpuTest*:-*MatchesTheReference*'
  [selection]='kernels_tests|--gtest_filter=*SelectionTest*cuda:-*TheShare*:*Columns*'
  [shares]='kernels_tests|--gtest_filter=*SelectionTest.*TheShare*cuda:*SelectionTest.*TheHeaviest*cuda'
  [columns]='kernels_tests|--gtest_filter=*SelectionTest.*WhatColumnsDo*cuda'
  [tokens]='kernels_tests|--gtest_filter=*TokenSelection*cuda'
  [latents]='kernels_tests|--gtest_filter=CudaLatentTest.AwkwardSizes*'
  [sampling]='sampling_test|--gtest_filter=*DeviceSampling*OfFew:*DeviceSampling*Refuses*'
  [portable]='env|LONGSTRIDE_TEST_KERNELS=portable|kernels_tests|--gtest_filter=*AttentionTest*cuda')

part_sanitize() {
  local tool what words
  command -v compute-sanitizer >/dev/null || { say "compute-sanitizer is missing"; return; }
  jobs=$(mktemp -d)
  for tool in memcheck racecheck synccheck; do
    for what in "${!sanitized[@]}"; do
      IFS='|' read -ra words <<<"${sanitized[$what]}"
      together "$tool-$what" "${SANITIZE_SECONDS:-150}" env PATH="$PWD/$bin:$PATH" \
        compute-sanitizer --tool $tool --target-processes all "${words[@]}"
    done
  done
  wait
  for tool in memcheck racecheck synccheck; do
    for what in "${!sanitized[@]}"; do
      say "$tool-$what: $(grep SUMMARY "$jobs/$tool-$what" | sort -u | tr '\n' ' ' || true)" \
        "($(cat "$jobs/$tool-$what.status"))"
      cat "$jobs/$tool-$what" >>"$logs/sanitize.txt"
    done
  done
}

part_attention() {
  local log=$logs/attention.txt
  local kernels
  jobs=$(mktemp -d)
  for kernels in fast portable; do
    together "$kernels" 300 "$bin/attention_gpu_check" "" "$kernels"
  done
  wait
  for kernels in fast portable; do
    say "attention_gpu_check, $kernels: $(grep -c '^ok' "$jobs/$kernels" || true) ok," \
      "$(grep -c '^FAIL' "$jobs/$kernels" || true) failed, $(cat "$jobs/$kernels.status")"
    cat "$jobs/$kernels" >>"$log"
  done
  limited 240 "$log" python3 bench/cuda/attention_bench.py "$bin/libattention.so" \
    ${ATTENTION_ARGS:-} || say "attention_bench: status $?"
  sed -n '/^\$ python3/,$p' "$log" | sed -n '/^$/,$p' >>"$logs/summary.txt"
}

part_linear() {
  local log=$logs/linear.txt
  limited 180 "$log" python3 bench/cuda/linear_bench.py "$bin/liblinear.so" ${LINEAR_ARGS:-} ||
    say "linear_bench: status $?"
  grep -vE '^\$' "$log" >>"$logs/summary.txt" || true
}

part_portable() {
  local log=$logs/portable.txt
  LONGSTRIDE_TEST_KERNELS=portable part_tests portable-tests
  limited 240 "$log" python3 bench/cuda/portable_bench.py "$bin" ${PORTABLE_ARGS:-} ||
    say "portable_bench: status $?"
  grep -vE '^\$' "$log" >>"$logs/summary.txt" || true
}

part_server() {
  local log=$logs/server.txt model shape scratch
  for model in ${MODELS:-models/SmolLM2-135M-Instruct.Q4_1.gguf models/gemma-3-270m-q4_k_m.gguf}; do
    [[ -e $model ]] || { say "server: $model is not here"; continue; }
    limited 180 "$log" python3 bench/cuda/server_check.py "$bin/longstride" tokens "$model" ||
      say "server: $model: status $?"
    say "$model: $(grep '^tokens:' "$log" | tail -1)"
  done
  scratch=$(mktemp -d)
  python3 bench/cuda/make_checkpoint.py "$scratch/tiny" tiny >>"$log"
  limited 120 "$log" python3 bench/cuda/server_check.py "$bin/longstride" tokens "$scratch/tiny" ||
    say "server: random weights: status $?"
  say "random weights: $(grep '^tokens:' "$log" | tail -1)"
  KV_MEMORY=5MiB limited 120 "$log" python3 bench/cuda/server_check.py "$bin/longstride" repeat \
    "$scratch/tiny" || say "server: repeats: status $?"
  rm -rf "$scratch"
  for shape in ${SHAPES:-1b}; do
    scratch=$(mktemp -d)
    limited 120 "$log" python3 bench/cuda/make_checkpoint.py "$scratch/$shape" "$shape" || true
    limited 240 "$log" python3 bench/cuda/server_check.py "$bin/longstride" speed \
      "$scratch/$shape" || say "server: $shape: status $?"
    limited 200 "$log" python3 bench/cuda/server_check.py "$bin/longstride" overhead \
      "$scratch/$shape" || say "overhead: $shape: status $?"
    rm -rf "$scratch"
  done
  grep -E '^(prefill|decode|       |repeat:|overhead:) |GEMM' "$log" >>"$logs/summary.txt" || true
}

run() {
  logs=${LOGS:-$folder/logs}
  mkdir -p "$logs"
  : >"$logs/summary.txt"
  bin=$folder/unpacked
  rm -rf "$bin"
  python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' \
    "$folder/pack.tar.xz" "$bin"
  say "$(nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit --format=csv,noheader)"
  local part began
  for part in "${parts[@]}"; do
    began=$SECONDS
    "part_$part" || say "$part: ended early"
    say "== $part took $((SECONDS - began)) s"
  done
  echo
  cat "$logs/summary.txt"
}

case $mode in
  pack) pack ;;
  run) run ;;
  *) echo "usage: bench/gpu.sh pack|run [folder] [part...]" >&2; exit 2 ;;
esac
