#!/usr/bin/env python3
"""Writes the tiny random checkpoints with dual chunk attention and their golden logits.

No public library computes it any more, so the golden logits are those of this file: Qwen2's and Qwen3's
forward pass in float64, with every pair of a query and a key rotated to its own two positions and one
softmax over all of them, from the formula (arXiv 2402.17463, 2501.15383). With s = chunk_size - local_size,
the key at j stands at j mod s; the query at i stands, for keys of the same run of s positions, at i mod s;
of the run before, at min(i mod s + s, chunk_size); of earlier ones, at min(2 s - 1, chunk_size).

Beyond N = original_max_position_embeddings the published code multiplies queries and keys by
f(n) = 0.1 ln(n / N) + 1 for a prompt of n tokens. The server takes f at the middle of a sixteenth of a
doubling of n, and so does this file; what that changes is printed.

Run with a Python that has numpy and safetensors:  make_dual_chunk.py
"""

import json
import math
import pathlib

import numpy
from safetensors.numpy import save_file

DATA = pathlib.Path(__file__).resolve().parent / "data"
VOCAB, DIM, FFN, LAYERS, HEADS, KV_HEADS, HEAD, EPS, THETA = 96, 32, 32, 2, 4, 2, 8, 1e-6, 10000.0

# name: (dual chunk attention, sequence lengths)
CASES = {
    "qwen2_dual_chunk": (dict(chunk_size=144, local_size=16, original_max_position_embeddings=300,
                              sparse_attention_enabled=False), [290, 430]),
    "qwen3_dual_chunk": (dict(chunk_size=160, local_size=32, sparse_attention_enabled=True,
                              sparse_attention_config={"0": {"0": ["vertical_and_slash", 30, 50, 1.0]}},
                              sparse_attention_threshold=32768, sparse_attention_last_q=64), [420]),
}


def make_weights(qwen3, random):
    def normal(*shape, deviation):
        return (random.standard_normal(shape) * deviation).astype(numpy.float32)

    def norm(size, least):
        return (random.random(size) + least).astype(numpy.float32)

    sharp, plain = 1.8 / DIM**0.5, 1.4 / DIM**0.5
    weights = {"model.embed_tokens.weight": normal(VOCAB, DIM, deviation=1.0),
               "model.norm.weight": norm(DIM, 0.5), "lm_head.weight": normal(VOCAB, DIM, deviation=plain)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for part, rows, deviation in (("q", HEADS * HEAD, sharp), ("k", KV_HEADS * HEAD, sharp),
                                      ("v", KV_HEADS * HEAD, plain)):
            weights[f"{prefix}self_attn.{part}_proj.weight"] = normal(rows, DIM, deviation=deviation)
            if not qwen3:
                weights[f"{prefix}self_attn.{part}_proj.bias"] = normal(rows, deviation=0.3)
        weights[f"{prefix}self_attn.o_proj.weight"] = normal(DIM, HEADS * HEAD, deviation=plain)
        if qwen3:
            weights[f"{prefix}self_attn.q_norm.weight"] = norm(HEAD, 1.1)
            weights[f"{prefix}self_attn.k_norm.weight"] = norm(HEAD, 1.1)
        for part, shape in (("gate", (FFN, DIM)), ("up", (FFN, DIM)), ("down", (DIM, FFN))):
            weights[f"{prefix}mlp.{part}_proj.weight"] = normal(*shape, deviation=plain)
        for part in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{part}.weight"] = norm(DIM, 0.5)
    return weights


def rms_norm(x, weight):
    return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight


def rotate(x, positions):
    """x: [..., HEAD], positions: what broadcasts over the leading axes."""
    angles = positions[..., None] * THETA ** -(numpy.arange(0, HEAD, 2) / HEAD)
    cos, sin = numpy.cos(angles), numpy.sin(angles)
    a, b = x[..., : HEAD // 2], x[..., HEAD // 2 :]
    return numpy.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def length_factor(tokens, original, exact):
    if not original or tokens <= original:
        return 1.0
    doublings = math.log2(tokens / original)
    if not exact:
        doublings = (math.ceil(doublings * 16) - 0.5) / 16
    return 0.1 * math.log(2) * doublings + 1


def attention(q, k, v, dual, exact):
    """q: [tokens, HEADS, HEAD], k and v: [tokens, KV_HEADS, HEAD]; a query is rotated for every key."""
    tokens = q.shape[0]
    chunk = dual["chunk_size"]
    stride = chunk - dual["local_size"]
    factor = length_factor(tokens, dual.get("original_max_position_embeddings", 0), exact)
    j = numpy.arange(tokens)
    keys = rotate(k, (j % stride)[:, None]) * factor
    out = numpy.zeros_like(q)
    for i in range(tokens):
        behind = i // stride - j[: i + 1] // stride
        place = numpy.select([behind == 0, behind == 1],
                             [i % stride, min(i % stride + stride, chunk)], min(2 * stride - 1, chunk))
        for h in range(HEADS):
            g = h // (HEADS // KV_HEADS)
            query = rotate(numpy.broadcast_to(q[i, h], (i + 1, HEAD)), place) * factor
            scores = (query * keys[: i + 1, g]).sum(-1) / HEAD**0.5
            p = numpy.exp(scores - scores.max())
            out[i, h] = p / p.sum() @ v[: i + 1, g]
    return out


def forward(weights, tokens, dual, exact=False):
    w = {name: value.astype(numpy.float64) for name, value in weights.items()}
    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        h = rms_norm(x, w[prefix + "input_layernorm.weight"])
        heads = []
        for part in "qkv":
            name = f"{prefix}self_attn.{part}_proj."
            y = h @ w[name + "weight"].T + w.get(name + "bias", 0)
            y = y.reshape(len(tokens), -1, HEAD)
            norm = w.get(f"{prefix}self_attn.{part}_norm.weight")
            heads.append(y if norm is None else rms_norm(y, norm))
        attended = attention(*heads, dual, exact).reshape(len(tokens), -1)
        x = x + attended @ w[prefix + "self_attn.o_proj.weight"].T
        h = rms_norm(x, w[prefix + "post_attention_layernorm.weight"])
        gate, up = (h @ w[f"{prefix}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (gate / (1 + numpy.exp(-gate)) * up) @ w[prefix + "mlp.down_proj.weight"].T
    return rms_norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def write_case(name):
    dual, lengths = CASES[name]
    qwen3 = name.startswith("qwen3")
    random = numpy.random.default_rng(sum(name.encode()) * 7919)
    weights = make_weights(qwen3, random)
    golden = {}
    for index, length in enumerate(lengths):
        tokens = random.integers(3, VOCAB, length)
        logits = forward(weights, tokens, dual)
        exact = forward(weights, tokens, dual, exact=True)
        edges = [0, 1, 63, 64, 126, 127, 128, 129, 143, 144, 145, 160, 161, 254, 255, 256, 257, 272, 273,
                 383, 384, 385, length - 1]
        positions = sorted({p for p in edges + list(range(3, length, 9)) if p < length})
        golden[f"tokens.{index}"] = tokens.astype(numpy.int32)
        golden[f"positions.{index}"] = numpy.array(positions, dtype=numpy.int32)
        golden[f"logits.{index}"] = logits[positions].astype(numpy.float32)
        print(f"{name}, {length} tokens: logit deviation {logits.std():.2f}; length scaling in steps changes "
              f"logits by at most {numpy.abs(logits - exact).max() / logits.std():.1e} of that")
        assert logits.std() >= 1
    settings = dict(
        architectures=["Qwen3ForCausalLM" if qwen3 else "Qwen2ForCausalLM"],
        model_type="qwen3" if qwen3 else "qwen2", vocab_size=VOCAB, hidden_size=DIM, intermediate_size=FFN,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD,
        rms_norm_eps=EPS, rope_theta=THETA, max_position_embeddings=1024, hidden_act="silu",
        tie_word_embeddings=False, use_sliding_window=False, bos_token_id=1, eos_token_id=2,
        dual_chunk_attention_config=dual)
    folder = DATA / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(golden, folder / "golden.safetensors")


if __name__ == "__main__":
    for case in CASES:
        write_case(case)
