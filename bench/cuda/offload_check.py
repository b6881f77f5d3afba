#!/usr/bin/env python3
"""A long prompt whose pages moved to host memory: the same bits, and how fast they came back.

usage: offload_check.py BINARY FOLDER [TOKENS]    a checkpoint of make_checkpoint.py; needs torch

Prompt A is computed, prompt B takes the device's room, A is asked for again. The second answer must have
the first one's tokens and log-probabilities to the bit, with A's pages from host memory. Rates of the
copies, by the server's own metrics, are compared with one copy of pinned memory by torch in the same run.
"""
import json
import os
import random
import sys
import time

from server_check import Server

KV_MEMORY = os.environ.get("KV_MEMORY", "20GiB")
HOST_MEMORY = os.environ.get("HOST_MEMORY", "32GiB")


def pinned_rates():
    """Bytes a second of one large copy out of the device and into it."""
    import torch
    host = torch.empty(4 << 30, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
    rates = {}
    for name, to, source in (("out", host, device), ("in", device, host)):
        times = []
        for _ in range(4):
            torch.cuda.synchronize()
            start = time.perf_counter()
            to.copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        rates[name] = host.numel() / min(times)
    del host, device
    torch.cuda.empty_cache()
    return rates


def ask(server, prompt):
    start = time.perf_counter()
    choice = server.complete(prompt=prompt, temperature=0, max_tokens=16, logprobs=5,
                             return_token_ids=True, return_tokens_as_token_ids=True)
    return choice["token_ids"], json.dumps(choice["logprobs"]), time.perf_counter() - start


def main():
    binary, folder = sys.argv[1:3]
    tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 100_000
    rates = pinned_rates()
    random.seed(7)
    a, b = ([random.randrange(1000, 100_000) for _ in range(tokens)] for _ in range(2))
    with Server(binary, folder, "--device", "cuda", "--max-context", str(tokens + 1024),
                "--scheduler-max-step-tokens", "8192", "--scheduler-inter-token-bound", "10s",
                "--kv-memory", KV_MEMORY, "--kv-host-memory", HOST_MEMORY) as server:
        first, between, again = ask(server, a), ask(server, b), ask(server, a)
        metrics = server.metrics()
    print(f"computed {first[2]:.2f} s, {between[2]:.2f} s; from host memory {again[2]:.2f} s "
          f"({tokens} tokens)")
    for way in ("out", "in"):
        moved = metrics[f'longstride:gpu_page_copy_bytes_total{{direction="{way}"}}']
        seconds = metrics[f'longstride:gpu_page_copy_seconds_total{{direction="{way}"}}']
        rate = moved / seconds if seconds > 0 else 0.0
        print(f"{way:>3}: {moved / 1e9:.2f} GB at {rate / 1e9:.1f} GB/s, pinned copy "
              f"{rates[way] / 1e9:.1f} GB/s: {rate / rates[way]:.2f}x")
        if moved < tokens * 1000:
            sys.exit("no pages were moved")
    if first[:2] != again[:2]:
        sys.exit("the answers differ")
    print("the answers agree to the bit")


if __name__ == "__main__":
    main()
