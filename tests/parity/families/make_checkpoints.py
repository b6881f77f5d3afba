#!/usr/bin/env python3
"""Writes the tiny random checkpoints of the parity test and their golden logits.

Each checkpoint is a Hugging Face folder made with the `transformers` class of its architecture, with
weights scaled so that attention is peaked and logits have a standard deviation of at least 1, norm
weights away from 1, biases and sinks that are not zero. The golden logits are that class's own, eager
attention, one pass over the whole sequence, in float32. Some weights are also written as GGUF files,
in the layout that converters to that format use (rotary rows of Llama permuted, Gemma's +1 folded
into the norms), with the same golden logits.

Where a rule and the class differ, the rule is what is computed here:
- OLMo 3: rotary scaling belongs to full layers only. The class of the version recorded in
  manifest.json does so (some versions before it scaled all layers); `check_olmo3` insists on it.

Of indexers (DSA) the golden files also hold which tokens each row reads, by the formula in float64; that
the class chooses the same is insisted on.

Run with a Python that has torch, transformers, safetensors and gguf:  make_checkpoints.py [NAME ...]
"""

import json
import pathlib
import sys

import gguf
import numpy
import safetensors
import torch
import transformers
from safetensors.numpy import save_file

DATA = pathlib.Path(__file__).resolve().parent / "data"
VOCAB = 96
LONG = 150  # crosses windows and chunks of 8, and page edges at 64 and 128

COMMON = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1,
              eos_token_id=2)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32,
            beta_fast=4.0, beta_slow=1.0)

# Ranks and channels are all different, so that none can stand for another.
LATENT = dict(COMMON, num_hidden_layers=3, num_key_value_heads=4, kv_lora_rank=24, qk_nope_head_dim=16,
              qk_rope_head_dim=8, v_head_dim=12, moe_intermediate_size=16, n_routed_experts=8,
              num_experts_per_tok=3, first_k_dense_replace=1, tie_word_embeddings=False)

# name: (config class, model class, configuration, sequence lengths)
CASES = {
    # Queries without a latent, as V2-Lite has them.
    "deepseek_v2": ("DeepseekV2Config", "DeepseekV2ForCausalLM",
                    dict(LATENT, q_lora_rank=None, n_shared_experts=2, topk_method="group_limited_greedy",
                         n_group=4, topk_group=2, routed_scaling_factor=1.6,
                         rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=0.707)), [LONG]),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM",
                    dict(LATENT, q_lora_rank=20, n_shared_experts=1, n_group=4, topk_group=2,
                         routed_scaling_factor=2.5, attention_bias=True, num_nextn_predict_layers=0,
                         rope_parameters=dict(YARN, mscale=1.3, mscale_all_dim=0.9)), [LONG]),
    # An indexer, whose keys are rotated in halves where those of attention are rotated in pairs.
    "deepseek_v32": ("DeepseekV32Config", "DeepseekV32ForCausalLM",
                     dict(LATENT, q_lora_rank=20, n_shared_experts=1, n_group=4, topk_group=2,
                          routed_scaling_factor=2.5, num_nextn_predict_layers=0, index_n_heads=7,
                          index_head_dim=14, index_topk=21,
                          rope_parameters=dict(YARN, mscale=1.3, mscale_all_dim=0.9)), [LONG]),
    # Layers 0, 1 and 3 choose tokens; 2 and 4 read those of the layer before.
    "glm_moe_dsa": ("GlmMoeDsaConfig", "GlmMoeDsaForCausalLM",
                    dict(LATENT, num_hidden_layers=5, q_lora_rank=20, n_shared_experts=1, n_group=1,
                         topk_group=1, routed_scaling_factor=2.5, num_nextn_predict_layers=0,
                         index_n_heads=7, index_head_dim=14, index_topk=21, index_topk_freq=2,
                         index_skip_topk_offset=2,
                         rope_parameters=dict(rope_type="default", rope_theta=10000.0)), [LONG]),
    "llama": ("LlamaConfig", "LlamaForCausalLM",
              dict(COMMON, num_hidden_layers=3, head_dim=16, rms_norm_eps=1e-5), [LONG]),
    "llama_rope_llama3": ("LlamaConfig", "LlamaForCausalLM", dict(
        COMMON, num_hidden_layers=2, head_dim=16, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=True,
        rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=64)), [LONG]),
    "mistral": ("MistralConfig", "MistralForCausalLM",
                dict(COMMON, num_hidden_layers=3, head_dim=16, sliding_window=8), [LONG]),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM",
              dict(COMMON, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
                   use_sliding_window=True, sliding_window=8, max_window_layers=1,
                   rope_parameters=YARN), [LONG]),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM",
              dict(COMMON, num_hidden_layers=3, head_dim=16, sliding_window=8,
                   rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0)), [LONG]),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM",
               dict(COMMON, num_hidden_layers=4, head_dim=16, sliding_window=8,
                    query_pre_attn_scalar=24, attn_logit_softcapping=4.0,
                    final_logit_softcapping=5.0), [LONG]),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM",
               # GGUF cannot state query_pre_attn_scalar: it is the head size, as in all but the 27B.
               dict(COMMON, num_hidden_layers=7, head_dim=16, sliding_window=8,
                    query_pre_attn_scalar=16,
                    rope_parameters=dict(
                        full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
                        sliding_attention=dict(rope_type="default", rope_theta=10000.0))), [LONG]),
    "phi3": ("Phi3Config", "Phi3ForCausalLM",
             dict(COMMON, num_hidden_layers=3, sliding_window=8, partial_rotary_factor=0.5), [LONG]),
    "phi3_longrope": ("Phi3Config", "Phi3ForCausalLM",
                      dict(COMMON, num_hidden_layers=2, original_max_position_embeddings=64,
                           rope_parameters=dict(rope_type="longrope", rope_theta=10000.0,
                                                short_factor=[1.0, 1.1, 1.3, 1.6],
                                                long_factor=[1.0, 2.0, 4.0, 7.5])), [48, LONG]),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM",
                dict(COMMON, num_hidden_layers=4, head_dim=16, sliding_window=8, num_local_experts=4,
                     num_experts_per_tok=2, swiglu_limit=2.0,
                     rope_parameters=dict(YARN, rope_theta=150000.0, truncate=False)), [LONG]),
    "gpt_oss_mxfp4": ("GptOssConfig", "GptOssForCausalLM",
                      dict(COMMON, num_hidden_layers=2, head_dim=16, sliding_window=8,
                           num_local_experts=4, num_experts_per_tok=2,
                           rope_parameters=dict(YARN, rope_theta=150000.0, truncate=False)), [LONG]),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM",
                dict(COMMON, num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=1,
                     sliding_window=8, logit_scale=0.25), [LONG]),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM",
              dict(COMMON, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1), [LONG]),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM",
              dict(COMMON, num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=1,
                   sliding_window=8,
                   rope_parameters=dict(full_attention=YARN,
                                        sliding_attention=dict(rope_type="default",
                                                               rope_theta=10000.0))), [LONG]),
    "llama4": ("Llama4TextConfig", "Llama4ForCausalLM",
               dict(COMMON, num_hidden_layers=5, head_dim=16, intermediate_size_mlp=48,
                    attention_chunk_size=8, interleave_moe_layer_step=2, num_local_experts=4,
                    num_experts_per_tok=1, floor_scale=16, attn_scale=0.4), [LONG]),
}


def random_weights(model, config, generator):
    """Fills every parameter; the scale follows its role."""
    dim = config.hidden_size
    offset_norms = config.model_type in ("gemma2", "gemma3_text")
    tied = config.tie_word_embeddings

    def normal(parameter, std):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                # A tied table is the head too: logits then have a deviation of about 2.
                normal(parameter, 2.0 / dim**0.5 if tied and "cohere2" not in config.model_type else 1.0)
            elif name.endswith("indexer.k_norm.bias"):
                normal(parameter, 0.3)
            elif "norm" in name and "a_layernorm" not in name:
                spread = torch.rand(parameter.shape, generator=generator)
                parameter.copy_(spread - 0.5 if offset_norms else spread + 0.5)
                if "q_norm" in name or "k_norm" in name:
                    parameter.add_(0.6)  # sharper attention: these fix the size of q and k
            elif "sinks" in name:
                normal(parameter, 1.5)
            elif name.endswith("bias"):
                normal(parameter, 0.3)
            elif "a_layernorm" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 1.0)
            elif "q_b_proj" in name or "kv_b_proj" in name:
                normal(parameter, 1.4 / parameter.shape[1]**0.5)
            elif "q_proj" in name or "k_proj" in name or "qkv_proj" in name:
                normal(parameter, 1.8 / dim**0.5)
            else:
                normal(parameter, 1.4 / dim**0.5)


def set_selection_biases(model, generator):
    """A router's bias that only chooses is a buffer, not a parameter."""
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)


def released_names(weights):
    """Experts as released checkpoints of DeepSeek hold them: each matrix for itself."""
    out = {}
    for name, value in weights.items():
        if not name.endswith(("mlp.experts.gate_up_proj", "mlp.experts.down_proj")):
            out[name] = value
            continue
        prefix, part = name.rsplit(".", 1)
        for e, matrix in enumerate(value):
            if part == "down_proj":
                out[f"{prefix}.{e}.down_proj.weight"] = matrix.copy()
                continue
            gate, up = numpy.split(matrix, 2)
            out[f"{prefix}.{e}.gate_proj.weight"], out[f"{prefix}.{e}.up_proj.weight"] = gate.copy(), up.copy()
    return out


# --- Indexers ---

def rotated(x, cos, sin, interleaved):
    """The first channels of float64 x [rows, heads, dim] by the angles of cos and sin [rows, n]."""
    n = cos.shape[1]
    out = x.copy()
    a, b = (x[..., 0:2 * n:2], x[..., 1:2 * n:2]) if interleaved else (x[..., :n], x[..., n:2 * n])
    cos, sin = cos[:, None, :], sin[:, None, :]
    first, second = a * cos - b * sin, a * sin + b * cos
    if interleaved:
        out[..., 0:2 * n:2], out[..., 1:2 * n:2] = first, second
    else:
        out[..., :n], out[..., n:2 * n] = first, second
    return out


def indexed_tokens(indexer, hidden, q_latents, angles, interleaved):
    """What each row reads by the formula, ascending [rows, topk] with -1 at the end, in float64.

    None where the worst taken and the best left out score are so near that float32 may not tell.
    """
    weight = {name: p.detach().double().numpy() for name, p in indexer.named_parameters()}
    hidden, q_latents, cos, sin = (t[0].double().numpy() for t in (hidden, q_latents, *angles))
    cos, sin = cos[:, :cos.shape[1] // 2], sin[:, :sin.shape[1] // 2]
    rows, heads, dim = hidden.shape[0], indexer.n_heads, indexer.head_dim
    q = (q_latents @ weight["wq_b.weight"].T).reshape(rows, heads, dim)
    k = hidden @ weight["wk.weight"].T
    k = (k - k.mean(-1, keepdims=True)) / numpy.sqrt(k.var(-1, keepdims=True) + 1e-6)
    k = k * weight["k_norm.weight"] + weight["k_norm.bias"]
    q, k = rotated(q, cos, sin, interleaved), rotated(k[:, None, :], cos, sin, interleaved)[:, 0]
    w = hidden @ weight["weights_proj.weight"].T
    chosen = numpy.full((rows, indexer.index_topk), -1, dtype=numpy.int32)
    for i in range(rows):
        scores = (w[i][:, None] * numpy.maximum(q[i] @ k[:i + 1].T, 0)).sum(0)
        order = numpy.argsort(-scores, kind="stable")
        count = min(indexer.index_topk, i + 1)
        if count <= i and scores[order[count - 1]] - scores[order[count]] < 1e-5 * abs(scores).max():
            return None
        chosen[i, :count] = numpy.sort(order[:count])
    return chosen


def watch_indexers(model, config):
    """A list that each run appends [rows, topk] to, layer by layer: what the indexers choose."""
    chosen = []

    def after(indexer, args, kwargs, output):
        names = ("hidden_states", "q_resid", "position_embeddings")
        hidden, q_latents, angles = (kwargs.get(n, args[i] if i < len(args) else None)
                                     for i, n in enumerate(names))
        want = indexed_tokens(indexer, hidden, q_latents, angles, config.model_type == "glm_moe_dsa")
        if want is not None:
            for i, row in enumerate(want):
                got = sorted(j for j in output[0, i].tolist() if j <= i)
                assert got == [j for j in row if j >= 0], "the class chooses otherwise than the formula"
        chosen.append(want)

    for layer in model.model.layers:
        indexer = getattr(layer.self_attn, "indexer", None)
        if indexer is None:
            layer.self_attn.register_forward_hook(lambda *_: chosen.append(chosen[-1]))
        else:
            indexer.register_forward_hook(after, with_kwargs=True)
    return chosen


def golden_logits(model, config, lengths, generator):
    tensors = {}
    chosen = watch_indexers(model, config) if hasattr(config, "index_topk") else []
    for index, length in enumerate(lengths):
        for _ in range(100):
            chosen.clear()
            tokens = torch.randint(3, VOCAB, (1, length), generator=generator)
            with torch.no_grad():
                logits = model(input_ids=tokens, use_cache=False).logits[0]
            if all(of_layer is not None for of_layer in chosen):
                break
        else:
            raise AssertionError("no text keeps the indexers' scores apart")
        if chosen:
            tensors[f"chosen.{index}"] = numpy.stack(chosen)
        edges = [0, 1, 6, 7, 8, 9, 15, 16, 17, 62, 63, 64, 65, 126, 127, 128, 129, length - 1]
        positions = sorted({p for p in edges + list(range(3, length, 7)) if p < length})
        deviation = logits.std().item()
        assert deviation >= 1.0, f"logits have a standard deviation of {deviation}"
        tensors[f"tokens.{index}"] = tokens[0].to(torch.int32).numpy()
        tensors[f"positions.{index}"] = numpy.array(positions, dtype=numpy.int32)
        tensors[f"logits.{index}"] = logits[positions].float().numpy()
    return tensors


# --- MXFP4 experts ---

E2M1 = numpy.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=numpy.float32)


def random_mxfp4(shape, generator):
    """Blocks [..., rows, cols / 32, 16] and scales, as Hugging Face stores them."""
    *lead, cols = shape
    blocks = torch.randint(0, 256, (*lead, cols // 32, 16), generator=generator, dtype=torch.uint8)
    # Values have a deviation of about 2.9 times the scale: 2^-4 brings them near 1/sqrt(32).
    scales = torch.randint(122, 125, (*lead, cols // 32), generator=generator).to(torch.uint8)
    return blocks.numpy(), scales.numpy()


def mxfp4_elements(blocks):
    """The codes in order: neighbours share a byte, low nibble first."""
    codes = numpy.stack([blocks & 15, blocks >> 4], axis=-1)
    return codes.reshape(*blocks.shape[:-1], 32)


def mxfp4_values(blocks, scales):
    values = E2M1[mxfp4_elements(blocks)] * numpy.exp2(scales.astype(numpy.float32) - 127)[..., None]
    return values.reshape(*blocks.shape[:-2], -1)


def mxfp4_gguf(blocks, scales):
    """The same in GGUF's layout: the scale, then bytes that pair element i with element i + 16."""
    elements = mxfp4_elements(blocks)
    packed = (elements[..., :16] | (elements[..., 16:] << 4)).astype(numpy.uint8)
    joined = numpy.concatenate([scales[..., None], packed], axis=-1)
    joined = joined.reshape(*joined.shape[:-2], -1)
    back = gguf.quants.dequantize(joined, gguf.GGMLQuantizationType.MXFP4)
    assert numpy.array_equal(back, mxfp4_values(blocks, scales))
    return joined


def set_mxfp4_experts(model, generator):
    """Gives the model's experts values that MXFP4 holds exactly; returns the stored form by name."""
    stored = {}
    for index, layer in enumerate(model.model.layers):
        for part in ("gate_up_proj", "down_proj"):
            parameter = getattr(layer.mlp.experts, part)
            experts, cols, rows = parameter.shape
            blocks, scales = random_mxfp4((experts, rows, cols), generator)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(mxfp4_values(blocks, scales)).transpose(1, 2))
            name = f"model.layers.{index}.mlp.experts.{part}"
            stored[name] = {"_blocks": blocks, "_scales": scales}
    return stored


# --- GGUF ---

def gguf_common(writer, arch, config):
    writer.add_name(f"tiny {arch}")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_file_type(0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")


def gguf_name(name):
    replacements = [("model.layers.", "blk."), ("model.embed_tokens", "token_embd"),
                    ("model.norm", "output_norm"), ("lm_head", "output"),
                    ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"),
                    ("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"),
                    ("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm"),
                    ("input_layernorm", "attn_norm"), ("mlp.gate_proj", "ffn_gate"),
                    ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"),
                    ("pre_feedforward_layernorm", "ffn_norm"),
                    ("post_feedforward_layernorm", "post_ffw_norm"), ("mlp.router", "ffn_gate_inp"),
                    ("self_attn.sinks", "attn_sinks.weight")]
    for old, new in replacements:
        name = name.replace(old, new)
    return name


def permute(weight, heads):
    """Rows of each head from half-split to interleaved rotary pairs."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_gguf_llama(path, config, weights):
    writer = gguf.GGUFWriter(path, "llama")
    gguf_common(writer, "llama", config)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    for name, value in weights.items():
        if "q_proj" in name:
            value = permute(value, config.num_attention_heads)
        elif "k_proj" in name:
            value = permute(value, config.num_key_value_heads)
        name = gguf_name(name.replace("post_attention_layernorm", "ffn_norm"))
        writer.add_tensor(name, numpy.ascontiguousarray(value))
    finish(writer)


def write_gguf_gemma3(path, config, weights):
    writer = gguf.GGUFWriter(path, "gemma3")
    gguf_common(writer, "gemma3", config)
    writer.add_rope_freq_base(1000000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)
    writer.add_sliding_window(config.sliding_window)
    for name, value in weights.items():
        if name == "lm_head.weight":
            continue
        if name.endswith("norm.weight"):
            value = value + 1
        name = gguf_name(name.replace("post_attention_layernorm", "post_attention_norm"))
        writer.add_tensor(name, numpy.ascontiguousarray(value))
    finish(writer)


def write_gguf_gpt_oss(path, config, weights):
    writer = gguf.GGUFWriter(path, "gpt-oss")
    gguf_common(writer, "gpt-oss", config)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.intermediate_size)

    def expert(layer, part, blocks, scales):
        writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", mxfp4_gguf(blocks, scales),
                          raw_dtype=gguf.GGMLQuantizationType.MXFP4)

    for name, value in weights.items():
        layer = name.split(".")[2] if name.startswith("model.layers.") else ""
        if name.endswith("gate_up_proj_blocks"):
            scales = weights[name.replace("_blocks", "_scales")]
            expert(layer, "gate", value[:, 0::2], scales[:, 0::2])
            expert(layer, "up", value[:, 1::2], scales[:, 1::2])
        elif name.endswith("down_proj_blocks"):
            expert(layer, "down", value, weights[name.replace("_blocks", "_scales")])
        elif name.endswith("_scales"):
            continue
        elif name.endswith("gate_up_proj_bias"):
            writer.add_tensor(f"blk.{layer}.ffn_gate_exps.bias", numpy.ascontiguousarray(value[:, 0::2]))
            writer.add_tensor(f"blk.{layer}.ffn_up_exps.bias", numpy.ascontiguousarray(value[:, 1::2]))
        elif name.endswith("down_proj_bias"):
            writer.add_tensor(f"blk.{layer}.ffn_down_exps.bias", value)
        else:
            name = gguf_name(name.replace("post_attention_layernorm", "post_attention_norm"))
            writer.add_tensor(name, numpy.ascontiguousarray(value))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF = {"llama": write_gguf_llama, "gemma3": write_gguf_gemma3, "gpt_oss_mxfp4": write_gguf_gpt_oss}


# --- Assembly ---

def check_olmo3(model):
    rotary = model.model.rotary_emb
    plain = 10000.0 ** (-torch.arange(0, 16, 2).float() / 16)
    torch.testing.assert_close(rotary.sliding_attention_inv_freq, plain)
    assert not torch.allclose(rotary.full_attention_inv_freq, plain)


def write_case(name):
    config_class, model_class, options, lengths = CASES[name]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(sum(name.encode()) * 7919)
    config = getattr(transformers, config_class)(**options, attn_implementation="eager")
    model = getattr(transformers, model_class)(config).float().eval()
    random_weights(model, config, generator)
    set_selection_biases(model, generator)
    mxfp4 = set_mxfp4_experts(model, generator) if name.endswith("mxfp4") else {}
    if name == "olmo3":
        check_olmo3(model)
    golden = golden_logits(model, config, lengths, generator)
    folder = DATA / name
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if key in mxfp4:
            weights.update({key + suffix: part for suffix, part in mxfp4[key].items()})
        else:
            weights[key] = value.float().numpy().copy()
    if name.startswith(("deepseek", "glm")):
        weights = released_names(weights)
    settings = {key: value for key, value in config.to_dict().items()
                if key not in ("transformers_version", "_name_or_path", "attn_implementation")}
    settings["architectures"] = [model_class]
    if mxfp4:
        settings["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(golden, folder / "golden.safetensors")
    if name in GGUF:
        GGUF[name](folder / "model.gguf", config, weights)
    size = sum(file.stat().st_size for file in folder.iterdir())
    deviation = golden["logits.0"].std()
    print(f"{name}: {size} bytes, logit deviation {deviation:.2f}")


def main():
    names = sys.argv[1:] or list(CASES)
    for name in names:
        write_case(name)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__,
                "safetensors": safetensors.__version__, "numpy": numpy.__version__,
                "gguf": __import__("importlib.metadata").metadata.version("gguf")}
    path = DATA / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    manifest.update({name: versions for name in names})
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
