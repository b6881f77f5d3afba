"""Times the matrix products beside torch.matmul (cuBLAS) at the shapes of an 8B Llama.

usage: linear_bench.py liblinear.so [--quick]
Ceilings are measured in the same run: the GEMM rate of 8192^3 in bf16 and the rate of reading.
Decode rows rotate over copies of the weight of more than 4 times the second-level cache; what is
timed is a CUDA graph of one pass over the copies.
"""
import argparse
import ctypes
import sys

import torch

DEVICE = "cuda"
TYPES = {"f32": 0, "f16": 1, "bf16": 2, "q8_0": 8, "q4_0": 9, "q4_1": 10, "q5_0": 11, "q5_1": 12,
         "q4_K": 13, "q5_K": 14, "q6_K": 15, "mxfp4": 16, "fp8": 17}
OPERANDS = {1: torch.float16, 2: torch.bfloat16, 3: torch.float8_e4m3fn}
# Offsets of half-precision scales in a block, and the block's bytes: random bytes there might be NaN.
SCALES = {"q8_0": (34, [0]), "q4_0": (18, [0]), "q4_1": (20, [0, 2]), "q5_0": (22, [0]),
          "q5_1": (24, [0, 2]), "q4_K": (144, [0, 2]), "q5_K": (176, [0, 2]), "q6_K": (210, [208]),
          "mxfp4": (17, []), "fp8": (132, [])}
SHAPES = [("qkv", 6144, 4096), ("o", 4096, 4096), ("gate_up", 28672, 4096), ("down", 4096, 14336)]


def median_ms(run, repeats, warmup=2):
    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def graph_ms(runs, repeats=7):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for run in runs[:2]:
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    return median_ms(graph.replay, repeats) / len(runs)


def scaled_mm_ms(m, n, k, repeats):
    """cuBLASLt's fp8 product, its fastest: one scale a tensor, short sums."""
    a = torch.randn(m, k, device=DEVICE).to(torch.float8_e4m3fn)
    b = torch.randn(n, k, device=DEVICE).to(torch.float8_e4m3fn)
    one = torch.ones((), device=DEVICE)
    return median_ms(lambda: torch._scaled_mm(a, b.T, scale_a=one, scale_b=one,
                                              out_dtype=torch.bfloat16, use_fast_accum=True),
                     repeats)


class Library:
    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.ls_packed_bytes.restype = ctypes.c_int64
        self.lib.ls_row_bytes.restype = ctypes.c_int64

    @staticmethod
    def stream():
        return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)

    @staticmethod
    def at(tensor):
        return ctypes.c_void_p(tensor.data_ptr() if tensor is not None else None)

    def call(self, name, *args):
        code = getattr(self.lib, name)(*args)
        if code != 0:
            sys.exit(f"{name}: CUDA error {code}")

    def pack(self, kind, source, n, k):
        packed = torch.zeros(self.lib.ls_packed_bytes(TYPES[kind], ctypes.c_int64(n),
                                                      ctypes.c_int64(k)),
                             dtype=torch.uint8, device=DEVICE)
        self.call("ls_pack", TYPES[kind], self.at(source), ctypes.c_int64(n), ctypes.c_int64(k),
                  self.at(packed), self.stream())
        return packed

    def random_weight(self, kind, n, k):
        if kind in ("f16", "bf16"):
            dtype = torch.float16 if kind == "f16" else torch.bfloat16
            source = torch.randn(n, k, device=DEVICE, dtype=dtype)
            return source, self.pack(kind, source, n, k)
        block, scales = SCALES[kind]
        row_bytes = self.lib.ls_row_bytes(TYPES[kind], ctypes.c_int64(k))
        blocks = torch.randint(0, 256, (n * row_bytes // block, block), dtype=torch.uint8,
                               device=DEVICE)
        for at in scales:
            scale = torch.rand(blocks.shape[0], 1, device=DEVICE) * 0.01
            blocks[:, at:at + 2] = scale.to(torch.float16).view(torch.uint8)
        if kind == "mxfp4":
            blocks[:, 0] = 120
        if kind == "fp8":
            blocks[:, :4] = (torch.rand(blocks.shape[0], 1, device=DEVICE) * 1e-4).view(torch.uint8)
            blocks[:, 4:] &= 0xfe  # no NaN
        return None, self.pack(kind, blocks, n, k)

    def operand(self, kind, m, k, portable=0):
        """Memory for rows as a product with weights of this kind takes them, and for their scales."""
        dtype = OPERANDS[self.lib.ls_operand_type(portable, TYPES[kind])]
        scale = None if dtype == torch.bfloat16 else torch.ones(m, device=DEVICE)
        return torch.empty(m, k, device=DEVICE, dtype=dtype), scale

    def convert(self, kind, x, x_type, operand, scale, portable=0):
        m, k = x.shape
        self.call("ls_convert", portable, TYPES[kind], self.at(x), TYPES[x_type], ctypes.c_int64(m),
                  ctypes.c_int64(k), self.at(operand), self.at(scale), self.stream())

    def product(self, kind, packed, n, operand, scale, out, out_type, portable=0):
        m, k = operand.shape
        self.call("ls_product", portable, TYPES[kind], self.at(packed), ctypes.c_int64(n), self.at(operand),
                  self.at(scale), ctypes.c_int64(m), ctypes.c_int64(k), self.at(out),
                  TYPES[out_type], self.stream())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--quick", action="store_true", help="fewer formats and repeats")
    parser.add_argument("--prefill", type=int, default=8192)
    args = parser.parse_args()
    lib = Library(args.library)
    repeats = 3 if args.quick else 7

    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    b = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    gemm = 2 * 8192 ** 3 / median_ms(lambda: a @ b, 7) / 1e9
    del a, b
    big = torch.zeros(1 << 30, device=DEVICE, dtype=torch.int32).random_()
    read = big.numel() * 4 / median_ms(lambda: torch.sum(big, dtype=torch.int32), 7) / 1e9
    other = torch.empty_like(big)
    copy = 2 * big.numel() * 4 / median_ms(lambda: other.copy_(big), 7) / 1e9
    del big, other
    read = max(read, copy)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: GEMM {gemm:.0f} TFLOP/s, "
          f"read {read:.2f} TB/s (copy {copy:.2f})\n")

    print(f"prefill, M = {args.prefill}")
    total = {}
    for name, n, k in SHAPES:
        m = args.prefill
        flops = 2 * m * n * k
        for kind in ("bf16", "fp8", "f16", "q8_0", "q4_K", "q6_K", "mxfp4"):
            if args.quick and kind in ("f16", "q6_K", "mxfp4"):
                continue
            source, packed = lib.random_weight(kind, n, k)
            x = torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16)
            operand, scale = lib.operand(kind, m, k)
            lib.convert(kind, x, "bf16", operand, scale)
            out = torch.empty(m, n, device=DEVICE, dtype=torch.bfloat16)
            ms = median_ms(lambda: lib.product(kind, packed, n, operand, scale, out, "bf16"),
                           repeats)
            line = f"{name:8s} {kind:6s} {ms:8.3f} ms {flops / ms / 1e9:7.1f} TFLOP/s " \
                   f"{flops / ms / 1e9 / gemm:6.1%} of GEMM"
            total[kind] = total.get(kind, 0) + ms
            if kind == "bf16":
                peer = median_ms(lambda: torch.matmul(x, source.T, out=out), repeats)
                want = torch.matmul(x, source.T)
                lib.product(kind, packed, n, operand, scale, out, "bf16")
                diff = ((out.float() - want.float()).norm() / want.float().norm()).item()
                out32 = torch.empty(m, n, device=DEVICE)
                ms32 = median_ms(lambda: lib.product(kind, packed, n, operand, scale, out32, "f32"),
                                 repeats)
                x32 = x.float()
                conv = median_ms(lambda: lib.convert(kind, x32, "f32", operand, scale), repeats)
                total["cuBLAS bf16"] = total.get("cuBLAS bf16", 0) + peer
                line += f"  cuBLAS {peer:.3f} ms: {peer / ms:.2f}x, diff {diff:.1e}; f32 out " \
                        f"{ms32:.3f} ms, f32 rows to bf16 {conv:.3f} ms"
                del out32, x32, want
            if kind == "fp8":
                peer = scaled_mm_ms(m, n, k, repeats)
                total["cuBLAS fp8"] = total.get("cuBLAS fp8", 0) + peer
                conv = median_ms(lambda: lib.convert(kind, x, "bf16", operand, scale), repeats)
                total["fp8 conversions"] = total.get("fp8 conversions", 0) + conv
                line += f"  cuBLAS with one scale a tensor {peer:.3f} ms: {peer / ms:.2f}x; " \
                        f"bf16 rows to fp8 {conv:.3f} ms"
            print(line, flush=True)
            del source, packed, x, operand, out
    print("sum of the four: " + ", ".join(f"{k} {v:.2f} ms" for k, v in total.items()) + "\n")

    for m in (1, 8, 64) if args.quick else (1, 8, 32, 64, 128, 256):
        print(f"decode, M = {m}")
        kinds = ("bf16", "fp8", "q8_0", "q4_K") if args.quick or m not in (1, 64) else \
            ("bf16", "fp8", "f16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_K", "q5_K", "q6_K", "mxfp4")
        total = {}
        floor = {}
        for name, n, k in SHAPES:
            for kind in kinds:
                size = lib.lib.ls_packed_bytes(TYPES[kind], ctypes.c_int64(n), ctypes.c_int64(k))
                copies = max(2, min(24, (260 << 20) // size + 1))
                weights = [lib.random_weight(kind, n, k) for _ in range(copies)]
                x = torch.randn(m, k, device=DEVICE)
                operand, scale = lib.operand(kind, m, k)
                lib.convert(kind, x, "f32", operand, scale)
                out = torch.empty(m, n, device=DEVICE)

                def alone(p):
                    return lambda: lib.product(kind, p, n, operand, scale, out, "f32")

                def both(p):
                    def run():
                        lib.convert(kind, x, "f32", operand, scale)
                        lib.product(kind, p, n, operand, scale, out, "f32")
                    return run
                ms = graph_ms([alone(p) for _, p in weights], repeats)
                with_conversion = graph_ms([both(p) for _, p in weights], repeats)
                rate = size / ms / 1e9
                total[kind] = total.get(kind, 0) + with_conversion
                floor[kind] = floor.get(kind, 0) + size / read / 1e9
                line = f"{name:8s} {kind:6s} {ms * 1e3:7.1f} us {rate:5.2f} TB/s " \
                       f"{rate / read:6.1%} of read; with f32 rows {with_conversion * 1e3:7.1f} us"
                if kind == "bf16":
                    xb = x.bfloat16()
                    outb = torch.empty(m, n, device=DEVICE, dtype=torch.bfloat16)
                    peer = graph_ms([(lambda s=s: torch.matmul(xb, s.T, out=outb))
                                     for s, _ in weights], repeats)
                    total["cuBLAS bf16"] = total.get("cuBLAS bf16", 0) + peer
                    line += f"; cuBLAS {peer * 1e3:.1f} us: {peer / ms:.2f}x"
                print(line, flush=True)
                del weights, x, operand, out
        print("sum of the four, with conversions: " +
              ", ".join(f"{k} {v * 1e3:.1f} us" +
                        (f" ({v / floor[k]:.2f}x floor)" if k in floor else "")
                        for k, v in total.items()) + "\n")


if __name__ == "__main__":
    main()
