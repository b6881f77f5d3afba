#!/usr/bin/env python3
"""What a long prompt does to running streams, and what they do to it.

  bench/serving/interference.py --ours build/cpu/server/longstride --model MODEL.gguf

Four streams decode; then a long prompt arrives. Reported: the streams' inter-token gaps while it
prefills (p50, p99, max) against the bound, and the prompt's prefill time beside four streams against
its time alone. Also: memory of idle queued SSE streams, and time from start to ready.
"""

import argparse
import datetime
import json
import os
import socket
import statistics
import sys
import threading
import time

from compare import commit, cpu_model
from serving_client import Server, free_port, random_prompt, seeded, stream_completion


def percentile(values, p):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(p * len(ordered)))]


def open_queued_streams(port, count, vocab):
    """Sends `count` streaming requests and leaves them unread; returns the sockets."""
    sockets = []
    for i in range(count):
        body = json.dumps({"prompt": random_prompt(seeded(i), 16, vocab), "max_tokens": 16,
                           "stream": True, "ignore_eos": True}).encode()
        s = socket.create_connection(("127.0.0.1", port))
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                  b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        sockets.append(s)
    for s in sockets:  # headers have arrived: the request is queued
        s.settimeout(60)
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = s.recv(4096)
            if not chunk:
                raise RuntimeError("connection closed: " + data.decode("latin-1"))
            data += chunk
        if b" 200 " not in data.split(b"\r\n", 1)[0]:
            raise RuntimeError(data.decode("latin-1")[:300])
    return sockets


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--ours-args", default="")
    parser.add_argument("--model", required=True)
    parser.add_argument("--vocab", type=int, default=262144)
    parser.add_argument("--long", type=int, default=30000)
    parser.add_argument("--bound-ms", type=float, default=400)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--queued", type=int, default=1000)
    parser.add_argument("--logs", default="/tmp")
    parser.add_argument("--out")
    args = parser.parse_args()

    port = free_port()
    server = Server([args.ours, "serve", "--model", args.model, "--http-port", str(port),
                     "--grpc-port", str(free_port()), *args.ours_args.split()], port,
                    "/health/ready", os.path.join(args.logs, "ours.log"))
    result = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
              "commit": commit(), "device": f"{cpu_model()}, {os.cpu_count()} cores",
              "command": " ".join(["bench/serving/interference.py"] + sys.argv[1:]),
              "model": os.path.basename(args.model), "ready_seconds": server.ready_seconds}
    try:
        stream_completion(server, random_prompt(seeded(0), 256, args.vocab), 8)
        alone = stream_completion(server, random_prompt(seeded(1), args.long, args.vocab), 1).ttft

        arrivals = [[] for _ in range(args.streams)]
        stop = threading.Event()

        def decode(i):
            begin = time.monotonic()
            n = 0
            while not stop.is_set():
                prompt = random_prompt(seeded(100 + 10 * i + n), 64, args.vocab)
                n += 1
                offset = time.monotonic() - begin
                timing = stream_completion(server, prompt, 1500)
                arrivals[i].append((begin + offset, timing.events))

        threads = [threading.Thread(target=decode, args=(i,)) for i in range(args.streams)]
        for t in threads:
            t.start()
        time.sleep(3)
        start = time.monotonic()
        beside = stream_completion(server, random_prompt(seeded(2), args.long, args.vocab), 1).ttft
        end = start + beside
        stop.set()
        for t in threads:
            t.join()
        gaps = []
        for runs in arrivals:
            for base, events in runs:
                times = [base + e for e in events]
                gaps += [b - a for a, b in zip(times, times[1:]) if b > start and a < end]
        result["streams"] = {"gap_p50_ms": 1e3 * statistics.median(gaps),
                             "gap_p99_ms": 1e3 * percentile(gaps, 0.99),
                             "gap_max_ms": 1e3 * max(gaps), "gaps": len(gaps),
                             "bound_ms": args.bound_ms, "bar_ms": 1.25 * args.bound_ms}
        result["long_prefill_seconds"] = {"alone": alone, "beside_streams": beside,
                                          "ratio": beside / alone, "bar": 1.25}
        print(json.dumps(result["streams"]))
        print(json.dumps(result["long_prefill_seconds"]), flush=True)

        # Queued streams: a long prompt keeps the engine busy while they wait.
        time.sleep(1)
        before = server.memory_bytes()
        sockets = open_queued_streams(port, args.queued, args.vocab)
        during = server.memory_bytes()
        for s in sockets:
            s.close()
        result["queued_streams"] = {"count": args.queued,
                                    "kib_each": (during - before) / 1024 / args.queued, "bar": 20}
        print(json.dumps(result["queued_streams"]), flush=True)
    finally:
        server.stop()
    if args.out:
        with open(args.out, "w") as f:
            json.dump(result, f, indent=2)
            f.write("\n")


if __name__ == "__main__":
    main()
