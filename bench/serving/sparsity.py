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
import os
import re
import statistics
import tempfile

from compare import commit, cpu_model
from serving_client import Server, free_port, random_prompt, seeded, stream_completion


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


def part(server, prompt, tokens):
    """One request: its times and what the server's counters say of it."""
    before = Metrics(server)
    timing = stream_completion(server, prompt, tokens)
    after = Metrics(server)
    return {"attention": after.phase("attention") - before.phase("attention"),
            "selection": after.phase("selection") - before.phase("selection"),
            "keys": (after.keys("read") - before.keys("read")) /
                    (after.keys("causal") - before.keys("causal")),
            "ttft": timing.ttft,
            "gap": statistics.median(timing.gaps()) if tokens > 1 else 0.0}


def measure(server, prompt, decode):
    """The prompt with one token; then twice from the prefix cache, with one token and with `decode`
    more: the difference is decoding."""
    prefill = part(server, prompt, 1)
    again = part(server, prompt, 1)
    whole = part(server, prompt, 1 + decode)
    return {"prefill s": prefill["ttft"],
            "prefill attention s": prefill["attention"],
            "prefill selection s": prefill["selection"],
            "prefill keys": prefill["keys"],
            "token ms": 1e3 * whole["gap"],
            "token attention ms": 1e3 * max(0.0, whole["attention"] - again["attention"]) / decode,
            "token selection ms": 1e3 * max(0.0, whole["selection"] - again["selection"]) / decode}


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
