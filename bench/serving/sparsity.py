#!/usr/bin/env python3
"""Sparsity plans of one model beside each other: where a long prompt and its answer spend their time.

  bench/serving/sparsity.py --ours build/cpu/server/longstride --model MODEL.gguf --length 30000 \
      --plans native,quest,block_topk

One server a plan (a built-in profile, or a plan file), all up at the same time and measured in turn,
`--rounds` times: a prompt of random token ids, then `--decode` tokens of answer. Reported from the
servers' own metrics, as medians: seconds of attention and of selecting keys (lists, ranking pages)
while the prompt is computed and per generated token, the tokens' own times, and the share of the keys
of dense attention that was read. Ratios are against the first plan, of the same round.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import tempfile
import time

from compare import commit, cpu_model
from serving_client import Server, free_port, random_prompt, seeded


class Metrics:
    def __init__(self, server):
        text = server.request("GET", "/metrics")[1].decode()
        self.samples = [(m[1], m[2] or "", float(m[3])) for m in
                        re.finditer(r"^([\w:]+)(\{[^}]*\})? (\S+)$", text, re.M)]

    def total(self, name, *labels):
        return sum(value for sample, text, value in self.samples
                   if sample == name and all(label in text for label in labels))

    def phase(self, phase):
        return self.total("longstride:step_phase_seconds_total", f'phase="{phase}"')

    def keys(self, kind):
        return self.total("longstride:attention_keys_total", f'kind="{kind}"')


def serve(args, plan, folder):
    port = free_port()
    flag = "--sparsity-plan" if os.path.exists(plan) else "--sparsity-profile"
    command = [args.ours, "serve", args.model, flag, plan, "--http-port", str(port),
               "--no-grpc-enabled", *args.ours_args.split()]
    return Server(command, port, "/health/ready", os.path.join(folder, os.path.basename(plan) + ".log"))


def measure(server, prompt, decode):
    """One request, its counters read before it, at its first token and at its end (a token or two may
    be counted to the wrong side)."""
    start = Metrics(server)
    body = {"prompt": prompt, "max_tokens": 1 + decode, "temperature": 0, "ignore_eos": True,
            "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=3600)
    sent = time.monotonic()
    connection.request("POST", "/v1/completions", json.dumps(body),
                       {"Content-Type": "application/json"})
    times, first = [], None
    for line in connection.getresponse():
        if not line.startswith(b"data: {"):
            continue
        times.append(time.monotonic())
        if first is None:
            first = Metrics(server)
    connection.close()
    end = Metrics(server)
    gaps = [b - a for a, b in zip(times[2:], times[3:])]

    def keys(a, b):
        return (b.keys("read") - a.keys("read")) / (b.keys("causal") - a.keys("causal"))

    return {"prefill s": times[0] - sent,
            "prefill attention s": first.phase("attention") - start.phase("attention"),
            "prefill selection s": first.phase("selection") - start.phase("selection"),
            "prefill keys": keys(start, first),
            "token ms": 1e3 * statistics.median(gaps),
            "token attention ms": 1e3 * (end.phase("attention") - first.phase("attention")) / decode,
            "token selection ms": 1e3 * (end.phase("selection") - first.phase("selection")) / decode,
            "token keys": keys(first, end)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--ours-args", default="")
    parser.add_argument("--model", required=True)
    parser.add_argument("--plans", default="native,quest,block_topk")
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--length", type=int, default=8000)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    plans = args.plans.split(",")
    results = {plan: [] for plan in plans}
    with tempfile.TemporaryDirectory() as folder:
        servers = {plan: serve(args, plan, folder) for plan in plans}
        try:
            for round_ in range(args.rounds):
                prompt = random_prompt(seeded(round_), args.length, args.vocab)
                for plan in plans:
                    results[plan].append(measure(servers[plan], prompt, args.decode))
        finally:
            for server in servers.values():
                server.stop()

    print(f"{os.path.basename(args.model)}, {args.length} tokens, {args.rounds} rounds; "
          f"{cpu_model()}, commit {commit()}\n")
    names = list(results[plans[0]][0])
    print("| figure | " + " | ".join(plans) + " |\n| --- |" + " --- |" * len(plans))
    for name in names:
        cells = []
        for plan in plans:
            value = statistics.median(r[name] for r in results[plan])
            ratios = [base[name] / r[name] for base, r in zip(results[plans[0]], results[plan])
                      if r[name] > 0]
            ratio = "" if plan == plans[0] or not ratios or "selection" in name else \
                f" ({statistics.median(ratios):.2f}×)"
            cells.append(f"{value:.3g}{ratio}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
