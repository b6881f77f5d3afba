#!/usr/bin/env python3
"""The portable kernels beside the fast ones on the same tensors, in one run.

Usage: portable_bench.py FOLDER [--parts attention,linear]   (FOLDER holds libattention.so, liblinear.so)
Ratios are fast time / portable time: 0.5 means that the portable kernel takes twice as long.
"""
import argparse
import os

import torch

import attention_bench as attention
import linear_bench as linear

DEVICE = "cuda"


def row(name, fast_ms, portable_ms, work, unit, note=""):
    rate = work / portable_ms / 1e9
    fast = f"{fast_ms:9.4f} ms" if fast_ms else f"{'-':>9s}   "
    ratio = f"{fast_ms / portable_ms:5.2f}x" if fast_ms else " " * 6
    print(f"{name:40s} fast {fast}  portable {portable_ms:9.4f} ms {ratio} {rate:8.2f} {unit} {note}",
          flush=True)


def prefill(lib, name, problem, flops, has_fast):
    times, out = {}, {}
    for portable in ((0, 1) if has_fast else (1,)):
        plan, run = lib.prefill(problem, portable=portable)
        plan()
        run()
        out[portable] = problem.out.clone()
        times[portable] = attention.timed(run, 5, 2)
    note = f"diff {attention.difference(out[1], out[0]):.1e}" if has_fast else ""
    row(name, times.get(0), times[1], flops, "TFLOP/s", note)


def bench_attention(lib):
    heads, kv_heads = 32, 8
    for dim, tokens in ((128, 32768), (64, 16384), (80, 16384), (96, 16384), (192, 16384),
                        (256, 16384)):
        q, k, v = attention.qkv(tokens, heads, kv_heads, dim)
        tiles, has_fast = tokens // 128, dim in (64, 128, 256)
        label = f"{tokens // 1024}K d{dim}"
        prefill(lib, f"prefill, dense {label}", attention.prefill_problem(q, k, v, None, 0),
                attention.tile_flops(tiles * (tiles + 1) // 2 * heads, dim), has_fast)
        if dim == 128:
            mask = attention.window_mask(tiles, 4096)
            prefill(lib, f"prefill, window 4096 {label}",
                    attention.prefill_problem(q, k, v, mask, 0, 4096),
                    attention.tile_flops(mask.sum().item() * heads, dim), has_fast)
            mask = attention.random_mask(heads, tiles, 0.1)
            prefill(lib, f"prefill, random 10% per head {label}",
                    attention.prefill_problem(q, k, v, mask, 2),
                    attention.tile_flops(mask.sum().item(), dim), has_fast)
        del q, k, v
    for dim, tokens, batch, keys in ((128, 131072, 8, 131072), (128, 131072, 1, 131072),
                                     (128, 131072, 16, 8192), (128, 131072, 32, 2048),
                                     (64, 65536, 8, 65536), (80, 65536, 8, 65536),
                                     (96, 65536, 8, 65536), (192, 65536, 8, 65536),
                                     (256, 32768, 8, 32768)):
        pool = 8 * (tokens // attention.PAGE)
        shape = (pool, kv_heads, attention.PAGE, dim)
        pk, pv = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        problems = [attention.decode_problem(
            batch, tokens, keys, heads, kv_heads, dim, pk, pv,
            torch.stack([torch.randperm(pool, device=DEVICE)[:tokens // attention.PAGE]
                         for _ in range(batch)]).to(torch.int32).contiguous(), s) for s in range(3)]
        times, out = {}, {}
        for portable in ((0, 1) if dim in (64, 128, 256) else (1,)):
            runs = []
            for problem in problems:
                plan, run = lib.decode(problem, keys // attention.PAGE, portable)
                plan()
                runs.append(run)
            times[portable] = attention.graphed(runs, 10)
            out[portable] = problems[0].out.clone()
        note = f"diff {attention.difference(out[1], out[0]):.1e}" if 0 in out else ""
        row(f"decode, B={batch}, {keys} of {tokens} d{dim}", times.get(0), times[1],
            batch * keys * kv_heads * dim * 4, "TB/s", note)
        del pk, pv, problems, runs


def bench_linear(lib):
    for m, kinds in ((1, ("bf16", "f16", "fp8", "q8_0", "q4_0", "q5_1", "q4_K", "q6_K", "mxfp4")),
                     (8, ("bf16", "fp8", "q8_0", "q4_K")), (64, ("bf16", "fp8", "q8_0", "q4_K")),
                     (512, ("bf16", "q4_K")),
                     (8192, ("bf16", "f16", "fp8", "q8_0", "q4_K", "q6_K", "mxfp4"))):
        for kind in kinds:
            totals, work, worst = {0: 0.0, 1: 0.0}, 0, 0.0
            for _, n, k in linear.SHAPES:
                size = lib.lib.ls_packed_bytes(linear.TYPES[kind], linear.ctypes.c_int64(n),
                                               linear.ctypes.c_int64(k))
                # More than the second-level cache holds, where the weights are what is read.
                copies = 1 if m > 512 else max(2, min(24, (260 << 20) // size + 1))
                weights = [lib.random_weight(kind, n, k)[1] for _ in range(copies)]
                x = torch.randn(m, k, device=DEVICE)
                operands = {p: lib.operand(kind, m, k, p) for p in (0, 1)}
                for p, operand in operands.items():
                    lib.convert(kind, x, "f32", *operand, p)
                out = {p: torch.empty(m, n, device=DEVICE) for p in (0, 1)}
                for p in (0, 1):
                    def one(w, p=p):
                        return lambda: lib.product(kind, w, n, *operands[p], out[p], "f32", p)
                    totals[p] += linear.graph_ms([one(w) for w in weights], 5)
                worst = max(worst, attention.difference(out[1], out[0]))
                work += 2 * m * n * k if m > 64 else size
                del weights, x, operands, operand, out
            row(f"products of a layer, M={m} {kind}", totals[0], totals[1], work,
                "TFLOP/s" if m > 64 else "TB/s", f"diff {worst:.1e}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--parts", default="attention,linear")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(0), "torch", torch.__version__)
    if "attention" in args.parts:
        bench_attention(attention.Library(os.path.join(args.folder, "libattention.so")))
    if "linear" in args.parts:
        bench_linear(linear.Library(os.path.join(args.folder, "liblinear.so")))


if __name__ == "__main__":
    main()
