#!/usr/bin/env python3
"""Writes quant_golden.txt: blocks of random bytes and what the `gguf` package decodes them to.

Usage: make_quant_golden.py > quant_golden.txt   (needs numpy and gguf)
One line per block: dtype, the block in hex, its float32 values as little-endian hex.
tests/kernels/quant_test.cpp replays it and compares bits.
"""

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGML_QUANT_SIZES, quants

# Offsets of the half-precision fields, which random bytes would make infinite or NaN.
HALVES = {
    T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.MXFP4: [],
}


def main() -> None:
    rng = np.random.default_rng(20250701)
    for dtype, halves in HALVES.items():
        _, block_bytes = GGML_QUANT_SIZES[dtype]
        for _ in range(4):
            block = rng.integers(0, 256, block_bytes, dtype=np.uint8)
            for offset in halves:
                value = np.float16(rng.normal() * 0.05)
                block[offset:offset + 2] = np.frombuffer(value.tobytes(), np.uint8)
            if dtype == T.MXFP4:
                block[0] = rng.integers(0, 200)
            values = quants.dequantize(block.reshape(1, -1), dtype).astype("<f4")
            print(dtype.name, block.tobytes().hex(), values.tobytes().hex())


main()
