#!/usr/bin/env python3
"""Writes the golden file of llama_cpp_parity_test: what llama.cpp's server continues and how sure it
is, greedily, for 20 short prompts and one of 20,000 tokens.

  python3 llama_cpp_parity.py --server PATH/llama-server --model MODEL.gguf --out golden.json

Per prompt: its token ids, and for each generated token its id and the five most likely tokens with
their log-probabilities (before sampling). Only the standard library is used.
"""

import argparse
import json
import subprocess
import time
import urllib.error
import urllib.request

NEW_TOKENS = 64
LONG_PROMPT_TOKENS = 20000
TOP = 5

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Water boils at 100 degrees Celsius because",
    "Die Hauptstadt von Deutschland ist Berlin. Die Stadt",
    "La Révolution française a commencé en",
    "1, 1, 2, 3, 5, 8, 13,",
    "{\"name\": \"Alice\", \"age\": 31, \"city\": \"",
    "Q: What is the tallest mountain in the world?\nA:",
    "The quick brown fox jumps over the lazy dog. The lazy dog",
    "SELECT name, COUNT(*) FROM orders",
    "In 1969, Neil Armstrong",
    "El sol sale por el este y se pone por",
    "Ingredients:\n- 2 cups of flour\n- 1 cup of sugar\n-",
    "#include <stdio.h>\n\nint main(void) {\n",
    "Dear Sir or Madam,\n\nI am writing to",
    "東京は日本の首都であり、",
    "The theory of evolution by natural selection was first",
    "To be, or not to be, that is the question:",
    "<html>\n<head>\n<title>",
]


def long_text():
    """A log of made-up events: natural enough, and the same on every machine."""
    names = ["Ana", "Boris", "Chen", "Dalia", "Emre", "Farah", "Goran", "Hana", "Ivo", "Jun"]
    things = ["the pump", "the north gate", "a lamp", "the server", "the kitchen door", "a valve",
              "the old boat", "the printer", "the radio", "a window"]
    acts = ["inspected", "repaired", "replaced", "painted", "cleaned", "measured", "moved",
            "forgot about", "photographed", "locked"]
    state = 12345
    lines = []
    for day in range(2500):
        picks = []
        for _ in range(4):
            state = (state * 1103515245 + 12345) % (1 << 31)
            picks.append(state >> 16)
        who, what, act = names[picks[0] % 10], things[picks[1] % 10], acts[picks[2] % 10]
        lines.append(f"Day {day + 1}: {who} {act} {what} and wrote down the number {picks[3] % 1000}.")
    return "\n".join(lines)


def call(port, path, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=3600) as reply:
        return json.load(reply)


def wait_until_ready(port, process):
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the server ended early")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit("the server did not get ready")


def continuation(port, ids):
    reply = call(port, "/completion", {
        "prompt": ids, "n_predict": NEW_TOKENS, "temperature": 0, "n_probs": TOP,
        "cache_prompt": False, "ignore_eos": True, "return_tokens": True,
    })
    steps = []
    for step in reply["completion_probabilities"]:
        steps.append({"id": step["id"],
                      "top": [[t["id"], round(t["logprob"], 5)] for t in step["top_logprobs"]]})
    assert len(steps) == NEW_TOKENS, len(steps)
    return {"prompt": ids, "steps": steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--flash-attention", default="off", choices=["on", "off"])
    parser.add_argument("--cache-type", default="f32")
    parser.add_argument("--short-only", action="store_true", help="leave the long prompt out")
    parser.add_argument("--port", type=int, default=18099)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    process = subprocess.Popen(
        [args.server, "-m", args.model, "-c", "24576", "-np", "1", "-t", str(args.threads),
         "--port", str(args.port), "-fa", args.flash_attention, "-ctk", args.cache_type,
         "-ctv", args.cache_type, "--no-webui"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(args.port, process)

        def tokenize(text):
            return call(args.port, "/tokenize", {"content": text, "add_special": True})["tokens"]

        cases = []
        for text in PROMPTS + ([] if args.short_only else [long_text()]):
            ids = tokenize(text)[:LONG_PROMPT_TOKENS]
            cases.append(continuation(args.port, ids))
            print(len(ids), "tokens", flush=True)
    finally:
        process.terminate()
        process.wait()
    with open(args.out, "w", encoding="utf-8") as out:
        out.write("{\"cases\": [\n")
        out.write(",\n".join(json.dumps(case, separators=(",", ":")) for case in cases))
        out.write("\n]}\n")


if __name__ == "__main__":
    main()
