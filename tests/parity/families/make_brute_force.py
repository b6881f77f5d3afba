#!/usr/bin/env python3
"""Writes tiny random checkpoints of families that attend sparsely by what they learned, and their
golden logits and selected blocks, computed by brute force.

No released class of these families runs without a GPU extension of its own, so the oracle is written
here from the papers' formulas, in float64, key by key, with nothing but the standard library:

- minicpm: MiniCPM4 with InfLLM-v2 (arXiv 2509.24663; scalings: arXiv 2404.06395). Compressed key c is
  the mean of keys [16 c, 16 c + 32); query i sees those that end at i or before; their softmax, summed
  over the query heads of a KV head, is max-pooled over [4 J - 1, 4 J + 4) to blocks of 64; the first
  blocks, the query's own and the window / 64 before it come first, topk + window / 64 in all. A query
  that sees fewer than dense_len keys reads them all (docs/decisions/0013).
- moba: Llama with MoBA (arXiv 2502.13189). A query head reads its own block and the topk - 1 whole
  blocks before whose mean key has the largest product with it.

The two best left out and the two worst taken scores of a row are kept apart by more than the error of
float32 (text that does not is drawn again), so that there is one right set.

    make_brute_force.py [NAME ...]
"""

import json
import math
import pathlib
import random
import struct
import sys

DATA = pathlib.Path(__file__).resolve().parent / "data"
VOCAB, DIM, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, BLOCK = 32, 32, 4, 2, 8, 32, 2, 64
LENGTH = 420  # crosses segments of 16, pages, and the length up to which everything is read
MARGIN = 2e-6  # of a share of attention or a product

COMMON = dict(vocab_size=VOCAB, hidden_size=DIM, intermediate_size=FFN, num_attention_heads=HEADS,
              num_key_value_heads=KV_HEADS, num_hidden_layers=LAYERS, max_position_embeddings=512,
              rms_norm_eps=1e-5, hidden_act="silu", rope_theta=10000.0)

CASES = {
    "minicpm": dict(
        COMMON, model_type="minicpm", architectures=["MiniCPMForCausalLM"], scale_emb=3,
        scale_depth=1.4, dim_model_base=16, tie_word_embeddings=True,
        rope_scaling=dict(rope_type="longrope", original_max_position_embeddings=256,
                          short_factor=[1.0 + 0.1 * i for i in range(4)],
                          long_factor=[1.5 + 0.4 * i for i in range(4)]),
        sparse_config=dict(kernel_size=32, kernel_stride=16, init_blocks=1, block_size=64,
                           window_size=64, topk=2, use_nope=False, dense_len=230)),
    "moba": dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"],
                 moba_chunk_size=128, moba_topk=2, tie_word_embeddings=False),
}


def float32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def product(matrix, x):
    return [dot(row, x) for row in matrix]


def norm(weight, x, eps):
    scale = 1.0 / math.sqrt(dot(x, x) / len(x) + eps)
    return [w * scale * v for w, v in zip(weight, x)]


def softmax(scores):
    most = max(scores)
    weights = [math.exp(s - most) for s in scores]
    total = sum(weights)
    return [w / total for w in weights]


def rope_tables(config):
    """Frequencies and the factor of cos and sin, for a text of LENGTH tokens."""
    plain = [config["rope_theta"] ** (-2.0 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)]
    scaling = config.get("rope_scaling")
    if scaling is None:
        return plain, 1.0
    original = scaling["original_max_position_embeddings"]
    factors = scaling["long_factor" if LENGTH > original else "short_factor"]
    scale = config["max_position_embeddings"] / original
    return ([f / d for f, d in zip(plain, factors)],
            math.sqrt(1.0 + math.log(scale) / math.log(original)))


def rotate(x, position, frequencies, factor):
    half = len(x) // 2
    out = [0.0] * len(x)
    for f in range(half):
        cos, sin = factor * math.cos(position * frequencies[f]), factor * math.sin(position * frequencies[f])
        out[f] = x[f] * cos - x[f + half] * sin
        out[f + half] = x[f] * sin + x[f + half] * cos
    return out


class Tie(Exception):
    """Two scores are too close for float32 to tell apart."""


def best(scores, count):
    """Indices of the largest scores (of equals, which only forced ones may be, the lower)."""
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    if count < len(order) and scores[order[count - 1]] < math.inf:
        if scores[order[count - 1]] - scores[order[count]] < MARGIN:
            raise Tie
    return set(order[:count])


def infllm_blocks(config, i, queries, keys):
    """Blocks of the query at i; queries of one KV head's query heads, its keys [position]."""
    sparse = config["sparse_config"]
    own = i // BLOCK
    if i + 1 < sparse["dense_len"]:
        return set(range(own + 1))
    local = sparse["window_size"] // BLOCK
    compressed = []
    first = 0
    while first + 32 <= i + 1:
        run = keys[first:first + 32]
        compressed.append([sum(channel) / 32 for channel in zip(*run)])
        first += 16
    sums = [0.0] * len(compressed)
    for q in queries:
        for c, share in enumerate(softmax([dot(q, k) / math.sqrt(HEAD_DIM) for k in compressed])):
            sums[c] += share
    scores = []
    for block in range(own + 1):
        if block < sparse["init_blocks"] or own - block <= local:
            scores.append(math.inf)
            continue
        scores.append(max(sums[max(0, 4 * block - 1):4 * block + 4]))
    return best(scores, sparse["topk"] + local)


def moba_blocks(config, i, query, keys):
    """Blocks of 64 of the query of one head at i."""
    size = config["moba_chunk_size"]
    own = i // size
    scores = [dot(query, [sum(channel) / size for channel in zip(*keys[b * size:(b + 1) * size])])
              for b in range(own)]
    chosen = best(scores + [math.inf], config["moba_topk"])
    return {page for b in chosen for page in range(b * size // BLOCK, (b + 1) * size // BLOCK)
            if page <= i // BLOCK}


def attention(config, x, layer, weights):
    """Output rows, and the selected blocks [head][position]."""
    prefix = f"model.layers.{layer}.self_attn."
    frequencies, factor = rope_tables(config)

    def heads(name, count, rotated):
        rows = []
        for position, row in enumerate(x):
            flat = product(weights[prefix + name + ".weight"], row)
            parts = [flat[h * HEAD_DIM:(h + 1) * HEAD_DIM] for h in range(count)]
            rows.append([rotate(p, position, frequencies, factor) if rotated else p for p in parts])
        return rows

    q, k, v = heads("q_proj", HEADS, True), heads("k_proj", KV_HEADS, True), heads("v_proj", KV_HEADS, False)
    group = HEADS // KV_HEADS
    out, selected = [], [[] for _ in range(HEADS)]
    for i in range(len(x)):
        row = []
        for h in range(HEADS):
            kv = h // group
            keys = [k[j][kv] for j in range(i + 1)]
            if "sparse_config" in config:
                if h % group == 0:
                    blocks = infllm_blocks(config, i, q[i][h:h + group], keys)
            else:
                blocks = moba_blocks(config, i, q[i][h], keys)
            selected[h].append(blocks)
            seen = [j for j in range(i + 1) if j // BLOCK in blocks]
            shares = softmax([dot(q[i][h], keys[j]) / math.sqrt(HEAD_DIM) for j in seen])
            head = [0.0] * HEAD_DIM
            for share, j in zip(shares, seen):
                for d in range(HEAD_DIM):
                    head[d] += share * v[j][kv][d]
            row += head
        out.append(product(weights[prefix + "o_proj.weight"], row))
    return out, selected


def mlp(x, layer, weights):
    prefix = f"model.layers.{layer}.mlp."
    out = []
    for row in x:
        gate, up = product(weights[prefix + "gate_proj.weight"], row), product(weights[prefix + "up_proj.weight"], row)
        out.append(product(weights[prefix + "down_proj.weight"],
                           [g / (1.0 + math.exp(-g)) * u for g, u in zip(gate, up)]))
    return out


def forward(config, tokens, weights):
    """Logits [position] and selected blocks [layer][head][position]."""
    eps = config["rms_norm_eps"]
    branch = config.get("scale_depth", math.sqrt(LAYERS)) / math.sqrt(LAYERS)
    x = [[config.get("scale_emb", 1) * e for e in weights["model.embed_tokens.weight"][t]] for t in tokens]
    selected = []
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        normed = [norm(weights[prefix + "input_layernorm.weight"], row, eps) for row in x]
        attended, blocks = attention(config, normed, layer, weights)
        selected.append(blocks)
        x = [[a + branch * b for a, b in zip(*rows)] for rows in zip(x, attended)]
        normed = [norm(weights[prefix + "post_attention_layernorm.weight"], row, eps) for row in x]
        x = [[a + branch * b for a, b in zip(*rows)] for rows in zip(x, mlp(normed, layer, weights))]
    scale = config["dim_model_base"] / DIM if "dim_model_base" in config else 1.0
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return [[scale * logit for logit in product(head, norm(weights["model.norm.weight"], row, eps))]
            for row in x], selected


def random_weights(config, generator):
    def matrix(rows, cols, deviation):
        return [[float32(generator.gauss(0, deviation)) for _ in range(cols)] for _ in range(rows)]

    def vector():
        return [float32(generator.uniform(0.6, 1.6)) for _ in range(DIM)]

    fan = 1 / math.sqrt(DIM)
    weights = {"model.embed_tokens.weight": matrix(VOCAB, DIM, 1.0), "model.norm.weight": vector()}
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(VOCAB, DIM, 2 * fan)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        # Peaked attention: what is read matters.
        weights[prefix + "self_attn.q_proj.weight"] = matrix(HEADS * HEAD_DIM, DIM, 2 * fan)
        weights[prefix + "self_attn.k_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, DIM, 1.5 * fan)
        weights[prefix + "self_attn.v_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, DIM, 1.5 * fan)
        weights[prefix + "self_attn.o_proj.weight"] = matrix(DIM, HEADS * HEAD_DIM, 1 / math.sqrt(HEADS * HEAD_DIM))
        weights[prefix + "mlp.gate_proj.weight"] = matrix(FFN, DIM, fan)
        weights[prefix + "mlp.up_proj.weight"] = matrix(FFN, DIM, fan)
        weights[prefix + "mlp.down_proj.weight"] = matrix(DIM, FFN, fan)
        weights[prefix + "input_layernorm.weight"] = vector()
        weights[prefix + "post_attention_layernorm.weight"] = vector()
    return weights


def save(path, tensors):
    """A safetensors file of {name: (type, shape, flat values)}."""
    header, data = {}, b""
    for name, (dtype, shape, values) in tensors.items():
        packed = struct.pack(f"<{len(values)}{ {'F32': 'f', 'I32': 'i'}[dtype] }".replace(" ", ""), *values)
        header[name] = dict(dtype=dtype, shape=shape, data_offsets=[len(data), len(data) + len(packed)])
        data += packed
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def floats(rows):
    if isinstance(rows[0], list):
        return ("F32", [len(rows), len(rows[0])], [x for row in rows for x in row])
    return ("F32", [len(rows)], rows)


def write_case(name):
    config = CASES[name]
    generator = random.Random(name)
    weights = random_weights(config, generator)
    while True:
        tokens = [generator.randrange(3, VOCAB) for _ in range(LENGTH)]
        try:
            logits, selected = forward(config, tokens, weights)
            break
        except Tie:
            print(f"{name}: a tie, once more")
    edges = [0, 30, 31, 32, 62, 63, 64, 65, 127, 128, 129, 190, 191, 192, 193, 207, 208, 228, 229, 230,
             254, 255, 256, 257, 319, 320, 383, 384, LENGTH - 1]
    positions = sorted(set(edges + list(range(3, LENGTH, 13))))
    flat = [x for p in positions for x in logits[p]]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat))
    assert deviation >= 1.0, f"logits have a standard deviation of {deviation}"
    pages = (LENGTH + BLOCK - 1) // BLOCK
    bits = [sum(1 << b for b in blocks) for layer in selected for head in layer for blocks in head]
    assert pages < 31
    folder = DATA / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save(folder / "model.safetensors", {key: floats(value) for key, value in weights.items()})
    save(folder / "golden.safetensors", {
        "tokens.0": ("I32", [LENGTH], tokens),
        "positions.0": ("I32", [len(positions)], positions),
        "logits.0": floats([logits[p] for p in positions]),
        # Bit b: the head reads block b.
        "blocks.0": ("I32", [LAYERS, HEADS, LENGTH], bits)})
    dense = sum(i // BLOCK + 1 for i in range(LENGTH)) * LAYERS * HEADS
    print(f"{name}: logit deviation {deviation:.2f}, {sum(bin(b).count('1') for b in bits) / dense:.2f} of the blocks")


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        write_case(case)
