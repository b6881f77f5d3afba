#!/usr/bin/env python3
"""Whether a plan finds needles: a constructed model of a Llama's shape, one layer of which answers a question
by the one token of a long text that it asks for; needs torch.

usage: needle_check.py BINARY {small,1b,8b} TOKENS [flags of the server, --sparsity-plan among them]
Environment: FP8 (not empty: weights in fp8), NEEDLES (16), EXPECT (found; missed: none must be found).

Every token is noise but in three blocks of 128 channels. Needle j has channel j of the first block (what it is
found by) and of the second (what it says), question j and answer j channel j of the third. The answering
layer's keys are the first block's channels as random signs, and a sixth of that as noise from all others; its queries are the third block's as the same signs, its values the second block, which its
output brings to a fourth, and the last matrix has answer j where that has channel j. All other layers add
nothing. Positions turn only the fast half of a head's channels, which keys and queries leave out. A
question's score is 30 above the text's, whose standard deviation is 0.6: attention over a million tokens answers
right, and so does a plan that reads the needle's page. The mean key of that page is 6 standard deviations off
those of others, seen along the question.
"""
import json
import math
import os
import pathlib
import random
import sys
import tempfile

import torch

import make_checkpoint
import server_check

BLOCK = 128
KEYS = 64  # needles that the model knows
FIRST_NEEDLE, FIRST_QUESTION, FIRST_ANSWER, FIRST_WORD = 16, 96, 176, 256
ROPE_THETA = 1e16
ANSWER_TOKENS = 4  # the first from the prompt's rows, the others from generated ones
make_checkpoint.SHAPES["small"] = dict(
    hidden_size=1024, intermediate_size=256, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, head_dim=128, vocab_size=2048, tie_word_embeddings=False)


def weights_of(c):
    """name -> matrix, of those that are not zero; norms aside."""
    g = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, generator=g)
    dim, size, vocab = c["hidden_size"], c["head_dim"], c["vocab_size"]
    half = size // 2
    still = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, size)])
    codes = normal(KEYS, len(still)).sign()
    found, said, asked, answered = (i * BLOCK for i in range(4))

    embed = normal(vocab, dim)
    embed[:, :4 * BLOCK] = 0
    mark = 16.0
    for j in range(KEYS):
        embed[FIRST_NEEDLE + j, found + j] = embed[FIRST_NEEDLE + j, said + j] = mark
        embed[FIRST_QUESTION + j, asked + j] = embed[FIRST_ANSWER + j, asked + j] = mark

    signal, noise = 6.0, 1.0  # a channel of a key
    k = torch.zeros(size, dim)
    k[still, found:found + KEYS] = codes.T * (signal / mark)
    rest = dim - 4 * BLOCK
    k[still, 4 * BLOCK:] = normal(len(still), rest) * (noise / math.sqrt(rest))
    q = torch.zeros(size, dim)
    strength = 30 * math.sqrt(size) / (signal * len(still))
    q[still, asked:asked + KEYS] = codes.T * (strength / mark)
    v = torch.zeros(size, dim)
    v[:KEYS, said:said + KEYS] = torch.eye(KEYS) / mark
    o = torch.zeros(dim, size)
    o[answered:answered + KEYS, :KEYS] = torch.eye(KEYS) * (mark / c["num_attention_heads"])
    head = normal(vocab, dim) * 0.01
    head[FIRST_ANSWER:FIRST_ANSWER + KEYS, answered:answered + KEYS] = torch.eye(KEYS)
    at = f"model.layers.{c['num_hidden_layers'] // 2}.self_attn."
    return {"model.embed_tokens.weight": embed, "lm_head.weight": head,
            at + "q_proj.weight": q.repeat(c["num_attention_heads"], 1),
            at + "k_proj.weight": k.repeat(c["num_key_value_heads"], 1),
            at + "v_proj.weight": v.repeat(c["num_key_value_heads"], 1),
            at + "o_proj.weight": o.repeat(1, c["num_attention_heads"])}


def blocks_of(matrix):
    rows, cols = matrix.shape
    return matrix.reshape(rows // 128, 128, cols // 128, 128)


def write(folder, shape, fp8, context):
    config = dict(make_checkpoint.config_of(shape, fp8, context), rope_theta=ROPE_THETA)
    config["tie_word_embeddings"] = False
    make_checkpoint.write_texts(folder, config)
    header, text = make_checkpoint.header_of(config)
    weights = weights_of(config)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(text)
        file.truncate(len(text) + max(e["data_offsets"][1] for e in header.values()))  # zeros

        def put(name, tensor):
            file.seek(len(text) + header[name]["data_offsets"][0])
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())

        for name, entry in header.items():
            base = name.removesuffix("_scale_inv")
            if name.endswith("norm.weight"):
                put(name, torch.ones(entry["shape"], dtype=torch.bfloat16))
            elif entry["dtype"] == "F32":
                scale = torch.ones(entry["shape"])
                if base in weights:
                    most = blocks_of(weights[base]).abs().amax(dim=(1, 3))
                    scale = torch.where(most > 0, most / 448, scale)
                put(name, scale)
            elif name in weights and entry["dtype"] == "F8_E4M3":
                blocks = blocks_of(weights[name])
                most = blocks.abs().amax(dim=(1, 3), keepdim=True)
                codes = blocks / torch.where(most > 0, most / 448, torch.ones_like(most))
                put(name, codes.reshape(entry["shape"]).to(torch.float8_e4m3fn))
            elif name in weights:
                put(name, weights[name].to(torch.bfloat16))


def main():
    if len(sys.argv) < 4 or sys.argv[2] not in make_checkpoint.SHAPES or not sys.argv[3].isdecimal():
        sys.exit(__doc__)
    binary, shape, tokens, flags = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    count, expected = int(os.environ.get("NEEDLES", "16")), os.environ.get("EXPECT", "found")
    rng = random.Random(11)
    vocab = make_checkpoint.SHAPES[shape]["vocab_size"]
    text = [rng.randrange(FIRST_WORD, vocab) for _ in range(tokens)]
    needles = rng.sample(range(KEYS), count)
    # Between the first and the last sixteenth.
    places = [tokens // 16 + (tokens * 14 // 16) * i // count + rng.randrange(64) for i in range(count)]
    for needle, place in zip(needles, places):
        text[place] = FIRST_NEEDLE + needle
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "needle"
        write(folder, shape, bool(os.environ.get("FP8")), tokens + 1024)
        with server_check.Server(binary, str(folder), "--max-context", str(tokens + 448), *flags) as server:
            found = []
            for needle, place in zip(needles, places):
                choice = server.complete(prompt=text + [FIRST_QUESTION + needle], temperature=0,
                                         max_tokens=ANSWER_TOKENS, ignore_eos=True, return_token_ids=True,
                                         return_tokens_as_token_ids=True, logprobs=0)
                found.append(choice["token_ids"] == [FIRST_ANSWER + needle] * ANSWER_TOKENS)
    missed = [f"{place / tokens:.0%}" for hit, place in zip(found, places) if not hit]
    print(f"needles: {sum(found)} of {count} found among {tokens} tokens"
          + (f"; missed at {', '.join(missed)}" if missed else ""))
    if sum(found) != (count if expected == "found" else 0):
        sys.exit("FAILED")


if __name__ == "__main__":
    main()
