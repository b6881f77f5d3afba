#!/usr/bin/env python3
"""Writes a checkpoint of random weights in the shape of a Llama, for speed only.

usage: make_checkpoint.py FOLDER {tiny,1b,8b} [fp8] [CONTEXT]
bf16; with fp8, projections are e4m3 with a scale for each block of 128 x 128. CONTEXT: positions, 131072. The weights are one block of normal values over and over: kernels read every byte all the same.
"""
import array
import json
import math
import pathlib
import random
import struct
import sys

BLOCK_VALUES = 524287  # a prime: no two rows are alike
SHAPES = {
    "tiny": dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, head_dim=64, vocab_size=512,
                 tie_word_embeddings=True),
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
               num_attention_heads=32, num_key_value_heads=8, head_dim=64, vocab_size=128256,
               tie_word_embeddings=True),
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
               num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=128256,
               tie_word_embeddings=False),
}


def config_of(shape, fp8, context):
    quantized = dict(quantization_config=dict(quant_method="fp8", fmt="e4m3",
                                              activation_scheme="dynamic",
                                              weight_block_size=[128, 128])) if fp8 else {}
    return dict(SHAPES[shape], **quantized, architectures=["LlamaForCausalLM"], model_type="llama",
                hidden_act="silu", rms_norm_eps=1e-5, rope_theta=500000.0,
                max_position_embeddings=context, torch_dtype="bfloat16",
                bos_token_id=0, eos_token_id=1)


def tensors_of(c):
    """(name, shape) in the order of the file."""
    dim, ffn = c["hidden_size"], c["intermediate_size"]
    q = c["num_attention_heads"] * c["head_dim"]
    kv = c["num_key_value_heads"] * c["head_dim"]
    yield "model.embed_tokens.weight", (c["vocab_size"], dim)
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (dim,)
        for name, shape in (("q", (q, dim)), ("k", (kv, dim)), ("v", (kv, dim)), ("o", (dim, q))):
            yield f"{at}self_attn.{name}_proj.weight", shape
        yield at + "post_attention_layernorm.weight", (dim,)
        for name, shape in (("gate", (ffn, dim)), ("up", (ffn, dim)), ("down", (dim, ffn))):
            yield f"{at}mlp.{name}_proj.weight", shape
    yield "model.norm.weight", (dim,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], dim)


def bf16(value):
    return struct.unpack("<I", struct.pack("<f", value))[0] >> 16


def e4m3(value):
    """The code of a value's magnitude, which is below 448, rounded to nearest."""
    sign, value = (0x80, -value) if value < 0 else (0, value)
    if value < 2 ** -6:
        return sign | round(value * 512)
    mantissa, exponent = math.frexp(value)
    return (sign | (exponent + 6) << 3) + round((mantissa - 0.5) * 16)


def tokenizer_of(vocab_size):
    """Every byte a token, and words that nothing spells for the rest."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    vocab = {"<s>": 0, "</s>": 1}
    for byte in range(256):
        vocab[letters[byte]] = len(vocab)
    for token in range(len(vocab), vocab_size):
        vocab[f"word{token}"] = token
    special = [dict(id=i, content=t, single_word=False, lstrip=False, rstrip=False,
                    normalized=False, special=True) for i, t in enumerate(("<s>", "</s>"))]
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    return dict(version="1.0", truncation=None, padding=None, added_tokens=special,
                normalizer=None, pre_tokenizer=level, post_processor=None, decoder=level,
                model=dict(type="BPE", dropout=None, unk_token=None,
                           continuing_subword_prefix=None, end_of_word_suffix=None,
                           fuse_unk=False, byte_fallback=False, vocab=vocab, merges=[]))


FP8_SCALE = 0.02 / 64  # times normal values of spread 64


def header_of(config):
    """name -> its entry in the file's header, in the order of the file; the header's bytes."""
    header, at = {}, 0

    def add(name, dtype, shape, value_bytes):
        nonlocal at
        size = value_bytes * math.prod(shape)
        header[name] = dict(dtype=dtype, shape=list(shape), data_offsets=[at, at + size])
        at += size

    for name, shape in tensors_of(config):
        if "quantization_config" in config and "_proj." in name:
            add(name, "F8_E4M3", shape, 1)
            add(name + "_scale_inv", "F32", [(n + 127) // 128 for n in shape], 4)
        else:
            add(name, "BF16", shape, 2)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return header, struct.pack("<Q", len(text)) + text


def write_weights(path, config):
    header, text = header_of(config)
    rng = random.Random(1)
    block = array.array("H", (bf16(rng.gauss(0, 0.02)) for _ in range(BLOCK_VALUES))).tobytes()
    codes = bytes(e4m3(rng.gauss(0, 64)) for _ in range(BLOCK_VALUES))
    with open(path, "wb") as file:
        file.write(text)
        for i, (name, entry) in enumerate(header.items()):
            left = entry["data_offsets"][1] - entry["data_offsets"][0]
            if name.endswith("norm.weight"):
                file.write(struct.pack("<H", bf16(1.0)) * (left // 2))
                continue
            if name.endswith("_scale_inv"):
                file.write(struct.pack("<f", FP8_SCALE) * (left // 4))
                continue
            values = codes if entry["dtype"] == "F8_E4M3" else block
            begin = len(values) // BLOCK_VALUES * (i * 40961 % BLOCK_VALUES)
            left -= file.write(values[begin:begin + left])
            while left > 0:
                left -= file.write(values[:left])
    return max(entry["data_offsets"][1] for entry in header.values())


def write_texts(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_of(config["vocab_size"])))


def main():
    options = sys.argv[3:]
    fp8 = options[:1] == ["fp8"]
    context = options[1 if fp8 else 0:]
    if len(sys.argv) < 3 or sys.argv[2] not in SHAPES or len(context) > 1 or not all(
            c.isdecimal() for c in context):
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    config = config_of(sys.argv[2], fp8, int(context[0]) if context else 131072)
    write_texts(folder, config)
    print(f"{write_weights(folder / 'model.safetensors', config) / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    main()
