#!/usr/bin/env python3
"""Engine and front-end work per token, from the server's own metrics, while streams decode.

  bench/serving/overhead.py --ours build/cpu/server/longstride --model MODEL.gguf

Prints microseconds a generated token (wall time): the engine's thread by phase, and the front end's
formatting and writing. `emit` is the engine's thread outside planning, the forward pass and sampling.
"""

import argparse
import json
import re

from compare import commit, cpu_model
from serving_client import Server, free_port, random_prompt, run_parallel, seeded, stream_completion


def metrics(server):
    values = {}
    for line in server.request("GET", "/metrics")[1].decode().splitlines():
        match = re.match(r"([a-zA-Z_:][^ ]*) ([^ ]+)$", line)
        if match:
            values[match.group(1)] = float(match.group(2))
    return values


def total(values, name):
    return sum(v for key, v in values.items() if key == name or key.startswith(name + "{"))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--ours-args", default="")
    parser.add_argument("--model", required=True)
    parser.add_argument("--vocab", type=int, default=262144)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=300)
    args = parser.parse_args()

    port = free_port()
    command = [args.ours, "serve", "--model", args.model, "--http-port", str(port), "--grpc-port", "0",
               *args.ours_args.split()]
    server = Server(command, port, "/health/ready", "/tmp/overhead-server.log")
    try:
        def streams(tokens):
            run_parallel([lambda i=i: stream_completion(
                server, random_prompt(seeded(i), 32, args.vocab), tokens) for i in range(args.streams)])

        streams(20)  # warm
        before = metrics(server)
        streams(args.tokens)
        after = metrics(server)
    finally:
        server.stop()

    def grown(name):
        return total(after, name) - total(before, name)

    tokens = grown("longstride:generation_tokens_total") or args.streams * args.tokens
    result = {"commit": commit(), "cpu": cpu_model(), "streams": args.streams, "tokens": tokens}
    phases = [key for key in after if key.startswith("longstride:step_phase_seconds_total{")]
    for key in phases:
        name = key.split('phase="')[1].split('"')[0]
        result[f"{name}_us"] = round((after[key] - before.get(key, 0)) / tokens * 1e6, 2)
    written = grown("longstride:written_tokens_total")
    if written:
        result["front_end_us"] = round(grown("longstride:write_seconds_total") / written * 1e6, 2)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
