#!/usr/bin/env python3
"""The server on the GPU: its greedy tokens beside the CPU's, and its speed beside the floor.

usage: server_check.py BINARY tokens MODEL    20 prompts through HTTP on both devices, the GPU's through gRPC
                                              too (needs grpcio-tools), and `generate`
       server_check.py BINARY speed FOLDER    a checkpoint of make_checkpoint.py; needs torch
       server_check.py BINARY repeat MODEL    tokens and log probabilities of requests alone, and of the same
                                              in company: other batches and chunks, preempted and resumed,
                                              by computing again and from host memory
       server_check.py BINARY overhead MODEL  decode steps a second of the server, and of decode_loop beside
                                              BINARY, which has no scheduler and no front end

The devices round differently, so tokens may part where two are nearly as likely: such a place counts
as the same if the CPU's token is within NEAR of the GPU's best in log probability there. What follows
such a place is not compared.

Environment of `speed`: SERVER_FLAGS (more flags of the server), PREFILLS (prompt lengths), DECODE_TOKENS.
Of `repeat` and `overhead`: DEVICE (cuda), SERVER_FLAGS; of `repeat`: KV_MEMORY (too little for all requests),
of `overhead`: BATCHES.
"""
import concurrent.futures
import json
import math
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

TOKENS = 24
# With weights in block formats the CPU rounds activations to 8-bit codes, the GPU to 16 bits: the bound
# allows for the former. The largest gap of 20 prompts on a Q4_K_M checkpoint was 0.216.
NEAR = 0.25
PROMPTS = [
    "The capital of France is", "Water boils at", "def fibonacci(n):", "Once upon a time",
    "The three primary colours are", "1, 2, 3, 4,", "In the beginning", "A haiku about autumn:",
    "The speed of light is", "Dear Sir or Madam,", "SELECT name FROM", "The quick brown fox",
    "Photosynthesis is the process by which", "To be, or not to be,", "My favourite book is",
    "import numpy as np\n", "The recipe needs two eggs,", "Albert Einstein was born in",
    "If it rains tomorrow,", "The sea was calm. " * 40 + "Then",
]


class Server:
    def __init__(self, binary, model, *flags):
        with socket.socket() as http, socket.socket() as grpc:
            http.bind(("127.0.0.1", 0))
            grpc.bind(("127.0.0.1", 0))
            self.port, self.grpc_port = http.getsockname()[1], grpc.getsockname()[1]
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(
            [binary, "serve", "--model", model, "--http-port", str(self.port), "--grpc-port",
             str(self.grpc_port), *flags], stdout=self.log, stderr=subprocess.STDOUT)

    def __enter__(self):
        end = time.monotonic() + 240
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5):
                    return self
            except OSError:
                time.sleep(0.1)
        self.process.kill()
        self.process.wait()
        self.log.seek(0)
        sys.exit(f"the server did not start:\n{self.log.read()}")

    def __exit__(self, *_):
        self.process.terminate()
        status = self.process.wait(timeout=60)
        self.log.seek(0)
        print(self.log.read(), file=sys.stderr)
        if status != 0:
            sys.exit(f"the server ended with status {status}")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def total(self, name):
        """A metric's sum over its labels."""
        return sum(v for key, v in self.metrics().items() if re.fullmatch(name + r"(\{.*\})?", key))

    def metrics(self):
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=10).read().decode()
        return {name: float(value)
                for name, value in re.findall(r"(?m)^([a-z_:]+(?:\{.*\})?) ([^ \n]+)$", text)}

    def complete(self, **fields):
        request = urllib.request.Request(f"{self.url}/v1/completions",
                                         data=json.dumps(fields).encode(),
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return json.load(response)["choices"][0]
        except urllib.error.HTTPError as error:
            sys.exit(f"HTTP {error.code}: {error.read().decode()}")


def grpc_answers(server):
    """The token ids of every prompt, by a client made from the .proto; None where gRPC is missing."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "e2e"))
    try:
        import grpc
        import harness
        pb, stubs = harness.messages(), harness.stubs()
    except ImportError as error:
        print(f"no gRPC client: {error}", file=sys.stderr)
        return None
    answers = []
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = stubs.InferenceStub(channel)
        for prompt in PROMPTS:
            request = pb.GenerateRequest(text=pb.TextPrompt(text=prompt))
            request.sampling.temperature = 0
            request.stopping.max_tokens = TOKENS
            answers.append([token.id for event in stub.Generate(request, timeout=300)
                            for token in event.delta.tokens])
    return answers


def greedy(binary, model, device):
    """(token ids, text, top log probabilities by token id) of every prompt, and the ids over gRPC."""
    answers = []
    with Server(binary, model, "--device", device) as server:
        for prompt in PROMPTS:
            choice = server.complete(prompt=prompt, temperature=0, max_tokens=TOKENS, logprobs=5,
                                     return_token_ids=True, return_tokens_as_token_ids=True)
            answers.append((choice["token_ids"], choice["text"],
                            choice["logprobs"]["top_logprobs"]))
        return answers, grpc_answers(server) if device == "cuda" else None


def gap(top, token):
    """By how much `token` is less likely than the likeliest of `top`, in log probability."""
    return max(top.values()) - top.get(f"token_id:{token}", -math.inf)


def compare_tokens(binary, model):
    (gpu, over_grpc), (cpu, _) = greedy(binary, model, "cuda"), greedy(binary, model, "cpu")
    same = close = 0
    gaps = []
    for prompt, (g, _, top), (c, _, _) in zip(PROMPTS, gpu, cpu):
        if g == c:
            same += 1
            continue
        at = next((i for i, (a, b) in enumerate(zip(g, c)) if a != b), min(len(g), len(c)))
        apart = gap(top[at], c[at]) if at < min(len(g), len(c)) else math.inf
        gaps.append(apart)
        close += apart <= NEAR
        print(f"{'part' if apart <= NEAR else 'differ'} at token {at} of {prompt[:30]!r}: "
              f"{g[at:at + 1]} and {c[at:at + 1]}, gap {apart:.3f}")
    result = subprocess.run([binary, "generate", model, PROMPTS[0], "--raw", "--temperature", "0",
                             "--max-tokens", str(TOKENS), "--device", "cuda"],
                            capture_output=True, text=True, timeout=100, check=False)
    said = result.returncode == 0 and gpu[0][1].strip() in result.stdout
    alike = None if over_grpc is None else sum(a == g for a, (g, _, _) in zip(over_grpc, gpu))
    print(f"tokens: {same} of {len(PROMPTS)} prompts as on the CPU, {close} part at a near tie "
          f"(largest gap of all {max(gaps, default=0):.3f}); "
          f"gRPC {'not tried' if alike is None else f'gives {alike} as HTTP'}; "
          f"generate {'says the same' if said else 'FAILED: ' + result.stdout + result.stderr}")
    print(result.stderr, file=sys.stderr)
    if same + close < len(PROMPTS) or not said or alike not in (None, len(PROMPTS)):
        sys.exit("FAILED")


def ceilings():
    import torch
    big = torch.empty(1 << 30, device="cuda", dtype=torch.int32).random_()
    other = torch.empty_like(big)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def best(run):
        times = []
        for _ in range(6):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return min(times)

    copy = 2 * big.numel() * 4 / best(lambda: other.copy_(big))
    gemm = 2 * 8192 ** 3 / best(lambda: a @ a)
    return copy, gemm


def describe_steps(before, after):
    """What the engine's steps of the time between spent, in the mean, and how they ran."""
    def grown(name, **labels):
        key = name + ("{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}" if labels else "")
        return after.get(key, 0) - before.get(key, 0)

    steps = grown("longstride:steps_total")
    if steps == 0:
        return
    phases = {phase: grown("longstride:step_phase_seconds_total", phase=phase) / steps * 1e3
              for phase in ("plan", "selection", "attention", "linear", "other", "sampling", "emit")}
    print("       a step, ms: " + ", ".join(f"{k} {v:.3f}" for k, v in phases.items()))
    runs = {run: grown("longstride:gpu_decode_steps_total", run=run)
            for run in ("launched", "recorded", "replayed")}
    if sum(runs.values()) > 0:
        print(f"       replayed {runs['replayed'] / sum(runs.values()):.1%} of "
              f"{sum(runs.values()):.0f} decode steps; chosen on the device "
              f"{grown('longstride:gpu_sampled_tokens_total', on='device'):.0f}, on the host "
              f"{grown('longstride:gpu_sampled_tokens_total', on='host'):.0f} tokens")
    measured = grown("longstride:gpu_measured_steps_total")
    if measured > 0:
        print(f"       {measured:.0f} steps measured, kernels in ms: " + ", ".join(
            f"{kind} {grown('longstride:gpu_kernel_seconds_total', kind=kind) / measured * 1e3:.3f}"
            for kind in ("attention", "linear", "other")), flush=True)


def measure_speed(binary, folder):
    copy, gemm = ceilings()
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    weights = (pathlib.Path(folder) / "model.safetensors").stat().st_size
    embedding = 2 * config["vocab_size"] * config["hidden_size"]
    read = weights if config["tie_word_embeddings"] else weights - embedding
    heads, size = config["num_attention_heads"], config["head_dim"]
    kv_bytes = 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * size
    print(f"{folder}: {weights / 1e9:.2f} GB, copy {copy / 1e12:.2f} TB/s, "
          f"GEMM {gemm / 1e12:.0f} TFLOP/s")
    flags = ["--device", "cuda", "--max-context", "65536", "--scheduler-max-step-tokens", "8192",
             "--scheduler-inter-token-bound", "10s"]
    output = int(os.environ.get("DECODE_TOKENS", "256"))
    with Server(binary, folder, *flags, *os.environ.get("SERVER_FLAGS", "").split()) as server:
        def bench(requests, concurrency, prompt, output):
            result = subprocess.run(
                [binary, "bench", "--url", server.url, "--requests", str(requests),
                 "--concurrency", str(concurrency), "--prompt-tokens", str(prompt),
                 "--output-tokens", str(output), "--seed", str(prompt + output + requests),
                 "--json"], capture_output=True, text=True, timeout=240, check=False)
            if result.returncode != 0:
                sys.exit(f"bench: {result.stderr}")
            return json.loads(result.stdout)

        bench(2, 1, 8192, 8)  # memory is mapped as it is first used
        for prompt in map(int, os.environ.get("PREFILLS", "1024 8192 32768").split()):
            ms = bench(3, 1, prompt, 1)["ttft_ms"]["p50"]
            linear = (read - 2 * config["vocab_size"] * config["hidden_size"]) * prompt
            attention = 2 * config["num_hidden_layers"] * heads * size * prompt * prompt
            floor = (linear + attention) / gemm * 1e3
            print(f"prefill {prompt:6d} tokens {ms:8.1f} ms {prompt / ms * 1e3:9.0f} tokens/s, "
                  f"floor {floor:7.1f} ms: {ms / floor:.2f}x")
        for concurrency, prompt in ((1, 128), (1, 8192), (8, 1024), (32, 1024)):
            before = server.metrics()
            ms = bench(concurrency, concurrency, prompt, output)["itl_ms"]["p50"]
            floor = (read + concurrency * (prompt + output / 2) * kv_bytes) / copy * 1e3
            print(f"decode {concurrency:3d} x {prompt:5d}   {ms:8.2f} ms a token "
                  f"{concurrency / ms * 1e3:9.0f} tokens/s, floor {floor:7.2f} ms: "
                  f"{ms / floor:.2f}x", flush=True)
            describe_steps(before, server.metrics())


REPEAT_PROMPTS, REPEAT_TOKENS = 10, 400


def repeat_request(index):
    """Prompts of 300 to 1,900 token ids, greedy and sampled in turn."""
    rng = random.Random(index)
    return dict(prompt=[rng.randrange(2, 500) for _ in range(rng.randrange(300, 1900))],
                max_tokens=REPEAT_TOKENS, ignore_eos=True, temperature=index % 2 * 0.8, seed=index,
                logprobs=5, return_token_ids=True, return_tokens_as_token_ids=True)


def check_repeats(binary, model):
    device = os.environ.get("DEVICE", "cuda")
    flags = ["--device", device, "--max-context", "4096",
             *os.environ.get("SERVER_FLAGS", "").split()]

    def answer(server, index):
        choice = server.complete(**repeat_request(index))
        return choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]

    with Server(binary, model, *flags, "--scheduler-max-step-tokens", "2048") as server:
        alone = [answer(server, i) for i in range(REPEAT_PROMPTS)]
    failed = False
    few = os.environ["KV_MEMORY"]
    little = ["--scheduler-max-step-tokens", "512", "--scheduler-reserve-tokens", "1", "--kv-memory",
              os.environ["KV_MEMORY"]]
    cases = [("together", ["--scheduler-max-step-tokens", "2048"]),
             ("together, chunks of at most 192", ["--scheduler-max-step-tokens", "192"]),
             ("preempted", little)]
    if device == "cuda":
        cases.append(("preempted, pages kept on the host", [*little, "--kv-host-memory", "1GiB"]))
    for name, more in cases:
        with Server(binary, model, *flags, *more) as server:
            with concurrent.futures.ThreadPoolExecutor(REPEAT_PROMPTS) as pool:
                got = list(pool.map(lambda i: answer(server, i), range(REPEAT_PROMPTS)))
            preempted = server.total("longstride:preemptions_total")
            back = server.total("longstride:gpu_page_copy_bytes_total")
        same = sum(a == b for a, b in zip(alone, got))
        print(f"repeat: {name}: {same} of {REPEAT_PROMPTS} requests give the tokens and log probabilities "
              f"that they give alone; {preempted:.0f} preemptions, {back / 1e6:.0f} MB of pages copied",
              flush=True)
        failed |= same != REPEAT_PROMPTS or (name.startswith("preempted") and preempted == 0)
    if failed:
        sys.exit("FAILED")


def measure_overhead(binary, model):
    device = os.environ.get("DEVICE", "cuda")
    loop = pathlib.Path(binary).parent / "decode_loop"
    prompt, steps = 128, int(os.environ.get("DECODE_TOKENS", "1500"))
    for batch in map(int, os.environ.get("BATCHES", "1 64").split()):
        run = lambda: json.loads(subprocess.run(
            [loop, model, "--device", device, "--sequences", str(batch), "--prompt", str(prompt),
             "--steps", str(steps)], capture_output=True, text=True, timeout=240, check=True).stdout)
        bare = [run()["steps_per_second"]]
        with Server(binary, model, "--device", device, "--max-context", "4096",
                    "--scheduler-max-running", str(max(batch, 8)),
                    *os.environ.get("SERVER_FLAGS", "").split()) as server:
            client = subprocess.Popen(
                [binary, "bench", "--url", server.url, "--requests", str(batch), "--concurrency",
                 str(batch), "--prompt-tokens", str(prompt), "--output-tokens", str(steps), "--json"],
                stdout=subprocess.DEVNULL)
            generated = lambda: server.total("longstride:generation_tokens_total")

            def wait_for(tokens):
                while generated() < tokens and client.poll() is None:
                    time.sleep(0.02)
                return time.monotonic(), server.total("longstride:steps_total")
            # All run by then, and none has ended.
            begin, first = wait_for(batch * steps * 0.15)
            end, last = wait_for(batch * steps * 0.85)
            if client.wait() != 0:
                sys.exit("bench failed")
        bare.append(run()["steps_per_second"])
        served = (last - first) / (end - begin)
        print(f"overhead: {batch} sequences: {served:.1f} steps a second served, bare {bare[0]:.1f} and "
              f"{bare[1]:.1f}: {served / max(bare):.3f}", flush=True)


def main():
    modes = dict(tokens=compare_tokens, speed=measure_speed, repeat=check_repeats,
                 overhead=measure_overhead)
    if len(sys.argv) != 4 or sys.argv[2] not in modes:
        sys.exit(__doc__)
    modes[sys.argv[2]](sys.argv[1], sys.argv[3])


if __name__ == "__main__":
    main()
