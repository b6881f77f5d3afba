#!/usr/bin/env python3
"""What live fidelity costs: the same long prompt and answer at several fidelity.sample_rates.

  bench/serving/live_fidelity.py --ours build/cpu/server/longstride --model MODEL.gguf \
      --profile quest --length 7900 --rates 0,0.01,0.1,1

One server a rate, all up at the same time; the prompt is computed once, then `--rounds` answers of
`--decode` tokens from the prefix cache, in turn. Reported: the mean time of a token (medians of the
rounds, ratios to the first rate within a round), the samples taken, what one took on the engine's
thread, and the share of the decode time that all of them took.
"""

import argparse
import os
import statistics
import tempfile

from compare import commit, cpu_model
from serving_client import Server, free_port, random_prompt, seeded, stream_completion
from sparsity import Metrics


def serve(args, rate, folder):
    port = free_port()
    command = [args.ours, "serve", args.model, "--sparsity-profile", args.profile, "--http-port",
               str(port), "--no-grpc-enabled", "--fidelity-sample-rate", rate,
               *args.ours_args.split()]
    return Server(command, port, "/health/ready", os.path.join(folder, rate + ".log"))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--ours-args", default="")
    parser.add_argument("--model", required=True)
    parser.add_argument("--profile", default="quest")
    parser.add_argument("--rates", default="0,0.01,0.1,1")
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--length", type=int, default=7900)
    parser.add_argument("--decode", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    rates = args.rates.split(",")
    prompt = random_prompt(seeded(1), args.length, args.vocab)
    rows = {rate: [] for rate in rates}
    with tempfile.TemporaryDirectory() as folder:
        servers = {rate: serve(args, rate, folder) for rate in rates}
        try:
            for server in servers.values():
                stream_completion(server, prompt, 1)
            for _ in range(args.rounds):
                for rate in rates:
                    before = Metrics(servers[rate])
                    gaps = stream_completion(servers[rate], prompt, args.decode).gaps()
                    after = Metrics(servers[rate])

                    def grown(name):
                        return after.total(name) - before.total(name)
                    rows[rate].append((statistics.mean(gaps), sum(gaps),
                                       grown("longstride:shadow_local_steps_total"),
                                       grown("longstride:shadow_local_seconds_total")))
        finally:
            for server in servers.values():
                server.stop()

    print(f"{os.path.basename(args.model)}, {args.profile}, {args.length} tokens and {args.decode} "
          f"of answer, {args.rounds} rounds; {cpu_model()}, commit {commit()}\n")
    print("| rate | ms a token | to the first rate | samples | ms a sample | share of the time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for rate in rates:
        token = statistics.median(row[0] for row in rows[rate])
        ratio = statistics.median(row[0] / first[0] for row, first in zip(rows[rate], rows[rates[0]]))
        samples = sum(row[2] for row in rows[rate])
        seconds = sum(row[3] for row in rows[rate])
        each = f"{1e3 * seconds / samples:.2f}" if samples else "–"
        share = seconds / sum(row[1] for row in rows[rate])
        print(f"| {rate} | {1e3 * token:.1f} | {ratio:.3f} | {samples:.0f} | {each} | {share:.2%} |")


if __name__ == "__main__":
    main()
