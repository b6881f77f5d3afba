#!/usr/bin/env python3
"""Writes the tiny random checkpoint of NSA (native sparse attention) and its golden logits and selected blocks.

No checkpoint is public and the authors' model class needs a GPU, so the golden values are those of this
file: the forward pass in float64, row by row, from the formula (arXiv 2502.11089 as
github.com/fla-org/native-sparse-attention trains it). With blocks of 64 keys, the query at i

- attends to the mean keys and values of the blocks that end at i or before, or gets zeros where there is none;
- attends to `block_counts` blocks up to itself: its own, and those with the largest share of that attention,
  summed over the query heads of its KV head;
- attends to the last `window_size` keys;

and the sum of the three, each times the sigmoid of a gate of its row and head, is what its head attends to.

The last share that is taken and the first that is not are kept apart by more than the error of float32 (text
that does not is drawn again), so that there is one right set.

Run with a Python that has numpy and safetensors:  make_nsa.py
"""

import json
import pathlib

import numpy
from safetensors.numpy import save_file

FOLDER = pathlib.Path(__file__).resolve().parent / "data" / "nsa"
VOCAB, DIM, FFN, LAYERS, HEADS, KV_HEADS, HEAD, EPS, THETA, BLOCK = 32, 32, 32, 2, 4, 2, 8, 1e-6, 10000.0, 64
LENGTH = 430  # 7 blocks, of which 3 are read
MARGIN = 2e-6

CONFIG = dict(model_type="nsa", architectures=["NSAForCausalLM"], vocab_size=VOCAB, hidden_size=DIM,
              intermediate_size=FFN, hidden_ratio=4, num_hidden_layers=LAYERS, num_heads=HEADS,
              num_kv_heads=KV_HEADS, head_dim=32, qkv_bias=True, block_size=BLOCK, block_counts=3,
              window_size=100, rope_theta=THETA, max_position_embeddings=1024, norm_eps=EPS,
              hidden_act="swish", tie_word_embeddings=False, fuse_norm=True, fuse_swiglu=True,
              fuse_cross_entropy=True, bos_token_id=1, eos_token_id=2)


def make_weights(random):
    def normal(*shape, deviation):
        return (random.standard_normal(shape) * deviation).astype(numpy.float32)

    def norm(size):
        return (random.random(size) + 0.5).astype(numpy.float32)

    sharp, plain = 2.2 / DIM**0.5, 1.4 / DIM**0.5
    weights = {"model.embeddings.weight": normal(VOCAB, DIM, deviation=1.0),
               "model.norm.weight": norm(DIM), "lm_head.weight": normal(VOCAB, DIM, deviation=plain)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for part, rows, deviation in (("q", HEADS * HEAD, sharp), ("k", KV_HEADS * HEAD, sharp),
                                      ("v", KV_HEADS * HEAD, plain)):
            weights[f"{prefix}attn.{part}_proj.weight"] = normal(rows, DIM, deviation=deviation)
            weights[f"{prefix}attn.{part}_proj.bias"] = normal(rows, deviation=0.3)
        weights[f"{prefix}attn.g_proj.weight"] = normal(3 * HEADS, DIM, deviation=plain)
        weights[f"{prefix}attn.o_proj.weight"] = normal(DIM, HEADS * HEAD, deviation=plain)
        for part, shape in (("gate", (FFN, DIM)), ("up", (FFN, DIM)), ("down", (DIM, FFN))):
            weights[f"{prefix}mlp.{part}_proj.weight"] = normal(*shape, deviation=plain)
        weights[f"{prefix}attn_norm.weight"], weights[f"{prefix}mlp_norm.weight"] = norm(DIM), norm(DIM)
    return weights


def rms_norm(x, weight):
    return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight


def sigmoid(x):
    return 1 / (1 + numpy.exp(-x))


def rotated(x):
    """x [tokens, heads, HEAD] at positions 0, 1, ..., channel f paired with f + HEAD / 2."""
    half = HEAD // 2
    angles = numpy.arange(len(x))[:, None] * THETA ** (-2.0 * numpy.arange(half) / HEAD)
    cos, sin = numpy.cos(angles)[:, None], numpy.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return numpy.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def attend(q, keys, values):
    """Output and shares of one query; zeros where there are no keys."""
    if len(keys) == 0:
        return numpy.zeros(HEAD), numpy.zeros(0)
    scores = keys @ q / HEAD**0.5
    shares = numpy.exp(scores - scores.max())
    shares /= shares.sum()
    return shares @ values, shares


class Tie(Exception):
    """Two shares are too close for float32 to tell apart."""


def chosen_blocks(shares, own):
    """The query's own block and the best of those before it."""
    order = sorted(range(own), key=lambda block: -shares[block])
    taken = min(CONFIG["block_counts"] - 1, own)
    if 0 < taken < own and shares[order[taken - 1]] - shares[order[taken]] < MARGIN:
        raise Tie
    return sorted(order[:taken]) + [own]


def attention(x, weight, blocks):
    """Rows attended; fills blocks [head][row] with the bits of those selected."""
    def heads(name, count):
        return (x @ weight(f"attn.{name}_proj.weight").T
                + weight(f"attn.{name}_proj.bias")).reshape(len(x), count, HEAD)

    q, k, v = rotated(heads("q", HEADS)), rotated(heads("k", KV_HEADS)), heads("v", KV_HEADS)
    gates = sigmoid(x @ weight("attn.g_proj.weight").T).reshape(len(x), HEADS, 3)
    out = numpy.zeros((len(x), HEADS, HEAD))
    group = HEADS // KV_HEADS
    for kv in range(KV_HEADS):
        keys, values = k[:, kv], v[:, kv]
        for i in range(len(x)):
            whole = (i + 1) // BLOCK
            means = [part[:whole * BLOCK].reshape(whole, BLOCK, HEAD).mean(1) for part in (keys, values)]
            parts = [attend(q[i, h], *means) for h in range(kv * group, (kv + 1) * group)]
            chosen = chosen_blocks(sum(shares for _, shares in parts), i // BLOCK)
            selected = [j for j in range(i + 1) if j // BLOCK in chosen]
            window = slice(max(0, i + 1 - CONFIG["window_size"]), i + 1)
            for h, (compressed, _) in zip(range(kv * group, (kv + 1) * group), parts):
                blocks[h, i] = sum(1 << block for block in chosen)
                three = (compressed, attend(q[i, h], keys[selected], values[selected])[0],
                         attend(q[i, h], keys[window], values[window])[0])
                out[i, h] = sum(gate * part for gate, part in zip(gates[i, h], three))
    return out.reshape(len(x), -1) @ weight("attn.o_proj.weight").T


def forward(tokens, weights):
    """Logits [tokens, VOCAB] and selected blocks [LAYERS, HEADS, tokens]."""
    weights = {name: value.astype(numpy.float64) for name, value in weights.items()}
    x = weights["model.embeddings.weight"][tokens]
    blocks = numpy.zeros((LAYERS, HEADS, len(tokens)), numpy.int32)
    for layer in range(LAYERS):
        def weight(name):
            return weights[f"model.layers.{layer}.{name}"]

        x = x + attention(rms_norm(x, weight("attn_norm.weight")), weight, blocks[layer])
        h = rms_norm(x, weight("mlp_norm.weight"))
        gate = h @ weight("mlp.gate_proj.weight").T
        x = x + (gate * sigmoid(gate) * (h @ weight("mlp.up_proj.weight").T)) @ weight("mlp.down_proj.weight").T
    return rms_norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T, blocks


def main():
    random = numpy.random.default_rng(26)
    weights = make_weights(random)
    while True:
        tokens = random.integers(3, VOCAB, LENGTH)
        try:
            logits, blocks = forward(tokens, weights)
            break
        except Tie:
            print("a tie, once more")
    edges = [0, 1, 62, 63, 64, 65, 98, 99, 100, 126, 127, 128, 129, 190, 191, 192, 193, 254, 255, 256, 319, 320,
             383, 384, LENGTH - 1]
    positions = sorted(set(edges + list(range(3, LENGTH, 13))))
    assert logits.std() >= 1.0, f"logits have a standard deviation of {logits.std()}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "config.json").write_text(json.dumps(CONFIG, indent=1, sort_keys=True) + "\n")
    save_file(weights, FOLDER / "model.safetensors", metadata={"format": "pt"})
    save_file({"tokens.0": tokens.astype(numpy.int32), "positions.0": numpy.array(positions, numpy.int32),
               "logits.0": logits[positions].astype(numpy.float32), "blocks.0": blocks},
              FOLDER / "golden.safetensors")
    print(f"logit deviation {logits.std():.2f}")


if __name__ == "__main__":
    main()
