#!/usr/bin/env python3
"""Serving speed and memory against llama.cpp's server, same machine, same run, in pairs.

  bench/serving/compare.py --ours build/cpu/server/longstride --peer .../llama-server \
      --model models/gemma-3-270m-q4_k_m.gguf --out bench/results/serving-gemma3-270m.json

Each figure is measured on both servers in turn (A B A B ...); the ratio is the median of the pairs'
ratios, above 1 where ours is faster. The peer runs with `-np 8 -cb -fa on`, its sliding-window cache
on and an f16 KV cache; its thread counts are swept once and the best is taken for prefill and decode
together. Prompts are random token ids, the same for both, never seen before by a prefix cache.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time

from serving_client import (Server, free_port, random_prompt, run_parallel, seeded,
                            stream_completion)


def start_ours(args, context_slots):
    port = free_port()
    command = [args.ours, "serve", "--model", args.model, "--http-port", str(port),
               "--grpc-port", str(free_port()), "--kv-dtype", "f16", *args.ours_args.split()]
    return Server(command, port, "/health/ready", os.path.join(args.logs, "ours.log"))


def start_peer(args, threads):
    port = free_port()
    command = [args.peer, "-m", args.model, "--host", "127.0.0.1", "--port", str(port), "-np", "8",
               "-cb", "-fa", "on", "-c", str(args.peer_context), "-kvu", "-t", str(threads), "-tb",
               str(threads), "-ctk", "f16", "-ctv", "f16", "--cache-ram", "0", "--no-webui"]
    return Server(command, port, "/health", os.path.join(args.logs, "peer.log"))


def median_gap(timing):
    return statistics.median(timing.gaps())


class Bench:
    def __init__(self, args):
        self.args = args
        self.rng = seeded(args.seed)
        self.rows = []

    def pairs(self, name, unit, measure, ours, peer, count, bar=None):
        """measure(server, prompt seed) -> figure, higher is better."""
        a, b, ratios = [], [], []
        for _ in range(count):
            seed = self.rng.randrange(1 << 30)
            x = measure(ours, seeded(seed))
            y = measure(peer, seeded(seed))
            a.append(x)
            b.append(y)
            ratios.append(x / y)
        row = {"name": name, "unit": unit, "ours": statistics.median(a),
               "peer": statistics.median(b), "ratio": statistics.median(ratios),
               "ratio_min": min(ratios), "ratio_max": max(ratios), "pairs": count, "bar": bar}
        self.rows.append(row)
        print("{name:34} ours {ours:10.2f}  peer {peer:10.2f} {unit:9} ratio {ratio:.2f} "
              "({ratio_min:.2f}-{ratio_max:.2f})  bar {bar}".format(**row), flush=True)

    def prefill(self, length):
        def measure(server, rng):
            timing = stream_completion(server, random_prompt(rng, length, self.args.vocab), 1)
            return length / timing.ttft
        return measure

    def decode(self, length, tokens):
        def measure(server, rng):
            timing = stream_completion(server, random_prompt(rng, length, self.args.vocab), tokens)
            return 1.0 / median_gap(timing)
        return measure

    def concurrent(self, streams, length, tokens):
        def measure(server, rng):
            prompts = [random_prompt(rng, length, self.args.vocab) for _ in range(streams)]
            starts = []

            def one(prompt):
                begin = time.monotonic()
                timing = stream_completion(server, prompt, tokens)
                return [begin + t for t in timing.events]

            starts = run_parallel([lambda p=p: one(p) for p in prompts])
            # Total decode rate while every stream is running.
            begin = max(events[0] for events in starts)
            end = min(events[-1] for events in starts)
            inside = sum(1 for events in starts for t in events if begin < t <= end)
            return inside / (end - begin)
        return measure


def sweep_peer_threads(args):
    if args.peer_threads:
        return args.peer_threads
    best, best_score = 1, 0.0
    for threads in range(1, os.cpu_count() + 1):
        peer = start_peer(args, threads)
        try:
            timing = stream_completion(peer, random_prompt(seeded(1), 512, args.vocab), 32)
            score = (512 / timing.ttft) * (1 / median_gap(timing))
        finally:
            peer.stop()
        if score > best_score:
            best, best_score = threads, score
    return best


def commit():
    try:
        return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_model():
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--ours-args", default="", help="more flags for our server")
    parser.add_argument("--peer", required=True, help="llama-server")
    parser.add_argument("--peer-threads", type=int, default=0, help="0: sweep")
    parser.add_argument("--peer-context", type=int, default=65536)
    parser.add_argument("--model", required=True)
    parser.add_argument("--vocab", type=int, default=262144)
    parser.add_argument("--long", type=int, default=30000, help="tokens of the long prompt")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--long-pairs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", default="/tmp")
    parser.add_argument("--out")
    args = parser.parse_args()

    threads = sweep_peer_threads(args)
    bench = Bench(args)
    ours = start_ours(args, 8)
    peer = start_peer(args, threads)
    print(f"ready after: ours {ours.ready_seconds:.2f} s, peer {peer.ready_seconds:.2f} s; "
          f"peer threads {threads}", flush=True)
    memory = {}
    try:
        for server in (ours, peer):  # first touch of weights and caches
            stream_completion(server, random_prompt(seeded(0), 256, args.vocab), 8)
        bench.pairs("prefill 2K", "tokens/s", bench.prefill(2048), ours, peer, args.pairs, 0.9)
        bench.pairs("decode at 2K", "tokens/s", bench.decode(2048, 64), ours, peer, args.pairs, 0.9)
        bench.pairs("8 streams, total decode", "tokens/s", bench.concurrent(8, 256, 96), ours, peer,
                    args.pairs, 1.0)
        if args.long_pairs:
            bench.pairs(f"prefill {args.long}", "tokens/s", bench.prefill(args.long), ours, peer,
                        args.long_pairs, 1.2)
            memory = {"ours": ours.memory_bytes(), "peer": peer.memory_bytes()}
            print("resident after the long prompt: ours {:.0f} MiB, peer {:.0f} MiB, ratio {:.2f} "
                  "(bar 1.10)".format(memory["ours"] / 2**20, memory["peer"] / 2**20,
                                      memory["ours"] / memory["peer"]), flush=True)
    finally:
        ours.stop()
        peer.stop()

    if args.out:
        result = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(),
            "command": " ".join(["bench/serving/compare.py"] + sys.argv[1:]),
            "device": f"{cpu_model()}, {os.cpu_count()} cores",
            "model": os.path.basename(args.model),
            "peer": "llama.cpp server",
            "peer_threads": threads,
            "ready_seconds": {"ours": ours.ready_seconds, "peer": peer.ready_seconds},
            "resident_bytes_at_long_context": memory,
            "rows": bench.rows,
        }
        with open(args.out, "w") as f:
            json.dump(result, f, indent=2)
            f.write("\n")


if __name__ == "__main__":
    main()
