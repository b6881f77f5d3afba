#!/usr/bin/env python3
"""Writes the tiny random encoders of the parity test and what they give.

Each checkpoint is a folder made with the `transformers` class of its architecture (and, where it has
modules, with `sentence_transformers`), with weights scaled so that attention is peaked, norm weights
away from 1 and biases that are not zero. Golden are that class's own final states and class scores,
eager attention, in float32, of documents of token ids at and around the window, several windows long
and longer; and embeddings of texts by `sentence_transformers`, tokenizer included.

Run with a Python that has torch, transformers, sentence_transformers and safetensors:
make_encoders.py [NAME ...]
"""

import json
import pathlib
import shutil
import sys
import tempfile

import numpy
import safetensors
import sentence_transformers
import tokenizers
import torch
import transformers
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (Dense, Normalize, Pooling,
                                                                Transformer)

DATA = pathlib.Path(__file__).resolve().parent / "data"
VOCAB = 320
CONTEXT = 1024
# The half window of every checkpoint is 8: a query sees 17 keys.
LENGTHS = [1, 2, 8, 9, 10, 16, 17, 18, 63, 64, 65, 150, 700]
TEXTS = ["a", "The quick brown fox jumps over the lazy dog.",
         "Überlange Straße: naïve façade, 東京 and emoji 🙂 in one line.",
         "Long documents cross windows and pages. " * 12]

MODERN = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_attention_heads=4,
              num_hidden_layers=5, max_position_embeddings=CONTEXT, local_attention=16,
              pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
# Positions up to that of pad_token_id are nobody's.
LONGFORMER = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_attention_heads=4,
                  num_hidden_layers=3, max_position_embeddings=CONTEXT + 1, type_vocab_size=2,
                  attention_window=[16, 4, 32], pad_token_id=0, bos_token_id=1, eos_token_id=2,
                  sep_token_id=2)
GEMMA = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_attention_heads=4,
             num_key_value_heads=1, head_dim=16, num_hidden_layers=7, max_position_embeddings=CONTEXT,
             sliding_window=16, query_pre_attn_scalar=24, use_bidirectional_attention=True,
             pad_token_id=0, bos_token_id=1, eos_token_id=2)


def labels(*names):
    return dict(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})


# name: (config class, model class, configuration, spelling of config.json, modules)
CASES = {
    "modernbert_classifier": (
        "ModernBertConfig", "ModernBertForSequenceClassification",
        dict(MODERN, classifier_pooling="cls", **labels("negative", "neutral", "positive")), "new", None),
    "modernbert_multi_label": (
        "ModernBertConfig", "ModernBertForSequenceClassification",
        dict(MODERN, classifier_pooling="mean", classifier_bias=True, classifier_activation="silu",
             problem_type="multi_label_classification", **labels("law", "finance", "health", "sport")),
        "old", None),
    "modernbert_embedder": ("ModernBertConfig", "ModernBertModel", MODERN, "new",
                            [("Pooling", dict(pooling_mode="cls")), ("Normalize", {})]),
    "longformer_classifier": (
        "LongformerConfig", "LongformerForSequenceClassification",
        dict(LONGFORMER, **labels("argument", "opinion", "report")), "new", None),
    "longformer_embedder": ("LongformerConfig", "LongformerModel",
                            dict(LONGFORMER, attention_window=16, type_vocab_size=1, pad_token_id=3,
                                 max_position_embeddings=CONTEXT + 4), "new",
                            [("Pooling", dict(pooling_mode="mean")), ("Normalize", {})]),
    "embeddinggemma": ("Gemma3TextConfig", "Gemma3TextModel", GEMMA, "old",
                       [("Pooling", dict(pooling_mode="mean")),
                        ("Dense", dict(out_features=48, bias=False, activation_function=None)),
                        ("Dense", dict(out_features=24, bias=True,
                                       activation_function=torch.nn.Tanh())),
                        ("Normalize", {})]),
}


def random_weights(model, config, generator):
    """Fills every parameter; the scale follows its role."""
    offset_norms = config.model_type == "gemma3_text"

    def normal(parameter, std):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" in name and "norm" not in name.lower():
                normal(parameter, 1.0)
            elif name.endswith("bias"):
                normal(parameter, 0.3)
            elif "norm" in name.lower():
                spread = torch.rand(parameter.shape, generator=generator)
                parameter.copy_(spread - 0.5 if offset_norms else spread + 0.5)
                if "q_norm" in name or "k_norm" in name:
                    parameter.add_(0.6)
            elif any(part in name for part in ("Wqkv", "query", "key")):
                normal(parameter, 2.0 / parameter.shape[1]**0.5)
            else:
                normal(parameter, 1.4 / parameter.shape[1]**0.5)


def byte_tokenizer():
    """Byte-level BPE with a few merges and [CLS] … [SEP] around a text."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB - 8, special_tokens=special, show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    assert tokenizer.get_vocab_size() <= VOCAB
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        unk_token="[UNK]", model_max_length=CONTEXT)


def hidden_states(model, tokens):
    """Final states as the classifier gets them."""
    made = []
    hook = model.base_model.register_forward_hook(
        lambda module, inputs, output: made.append(output.last_hidden_state[0]))
    model(input_ids=tokens)
    hook.remove()
    return made[0]


def golden_documents(model, generator):
    tensors = {}
    classifies = hasattr(model, "classifier")
    for index, length in enumerate(LENGTHS):
        tokens = torch.randint(4, VOCAB, (1, length), generator=generator)
        with torch.no_grad():
            if classifies:
                logits = model(input_ids=tokens).logits[0]
                many = model.config.problem_type == "multi_label_classification"
                scores = logits.sigmoid() if many else logits.softmax(-1)
                states = hidden_states(model, tokens)
                tensors[f"scores.{index}"] = scores.numpy()
            else:
                states = model(input_ids=tokens).last_hidden_state[0]
        positions = sorted({p for p in [0, 1, 7, 8, 9, 16, 17, 63, 64, 65, length // 2, length - 9,
                                        length - 8, length - 1] if 0 <= p < length})
        tensors[f"tokens.{index}"] = tokens[0].to(torch.int32).numpy()
        tensors[f"positions.{index}"] = numpy.array(positions, dtype=numpy.int32)
        tensors[f"states.{index}"] = states[positions].numpy()
    return tensors


def old_spelling(settings):
    """config.json as checkpoints of 2024 have it."""
    ropes = settings.pop("rope_parameters")
    settings.pop("layer_types")
    settings["global_rope_theta"] = ropes["full_attention"]["rope_theta"]
    settings["local_rope_theta"] = ropes["sliding_attention"]["rope_theta"]
    settings["global_attn_every_n_layers"] = 3


def old_modules(folder):
    """modules.json and its pooling as checkpoints of 2025 have them."""
    modules = json.loads((folder / "modules.json").read_text())
    for entry in modules:
        entry["type"] = "sentence_transformers.models." + entry["type"].rsplit(".", 1)[1]
        path = folder / entry["path"] / "config.json"
        if not entry["type"].endswith("Pooling"):
            continue
        mode = json.loads(path.read_text())["pooling_mode"]
        modes = {f"pooling_mode_{name}": name.startswith(mode) for name in
                 ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")}
        modes["pooling_mode_mean_sqrt_len_tokens"] = False
        path.write_text(json.dumps(dict(modes, word_embedding_dimension=32, include_prompt=True)) + "\n")
    (folder / "modules.json").write_text(json.dumps(modules, indent=1) + "\n")


def module(kind, options, width):
    if kind == "Pooling":
        return Pooling(width, **options)
    if kind == "Dense":
        return Dense(in_features=width, **options)
    return Normalize()


def golden_texts(folder, modules, generator):
    """Adds the modules to the folder; embeddings of TEXTS by the whole."""
    steps = [Transformer(str(folder), model_kwargs=dict(attn_implementation="eager",
                                                        dtype=torch.float32))]
    width = steps[0].get_embedding_dimension()
    for kind, options in modules:
        steps.append(module(kind, options, width))
        if kind == "Dense":
            random = dict(steps[-1].named_parameters())
            with torch.no_grad():
                for parameter in random.values():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / width**0.5)
            width = options["out_features"]
    whole = SentenceTransformer(modules=steps, device="cpu")
    vectors = [whole.encode(text, convert_to_numpy=True) for text in TEXTS]
    with tempfile.TemporaryDirectory() as saved:
        whole.save(saved)
        shutil.copy(pathlib.Path(saved) / "modules.json", folder)
        for path in pathlib.Path(saved).iterdir():
            if path.is_dir() and any(path.iterdir()):
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
    return vectors


def write_case(name):
    config_class, model_class, options, spelling, modules = CASES[name]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(sum(name.encode()) * 7919)
    config = getattr(transformers, config_class)(**options, attn_implementation="eager")
    model = getattr(transformers, model_class)(config).float().eval()
    random_weights(model, config, generator)
    golden = golden_documents(model, generator)
    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = {key: value for key, value in config.to_dict().items()
                if key not in ("transformers_version", "_name_or_path", "attn_implementation")}
    settings["architectures"] = [model_class]
    if spelling == "old" and config.model_type == "modernbert":
        old_spelling(settings)
    (folder / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    save_file({key: value.float().numpy().copy() for key, value in model.state_dict().items()},
              folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    texts = {"texts": [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in TEXTS]}
    if modules:
        for entry, vector in zip(texts["texts"], golden_texts(folder, modules, generator)):
            entry["embedding"] = [float(value) for value in vector]
        if spelling == "old":
            old_modules(folder)
    else:
        for entry in texts["texts"]:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([entry["ids"]])).logits[0]
            many = config.problem_type == "multi_label_classification"
            entry["scores"] = [float(v) for v in (logits.sigmoid() if many else logits.softmax(-1))]
    (folder / "golden.json").write_text(json.dumps(texts, ensure_ascii=False) + "\n")
    save_file(golden, folder / "golden.safetensors")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {size} bytes, state deviation {golden['states.11'].std():.2f}, "
          f"{[round(v, 3) for v in texts['texts'][1].get('scores', [])]}")


def main():
    path = DATA / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__,
                "sentence_transformers": sentence_transformers.__version__,
                "tokenizers": tokenizers.__version__, "safetensors": safetensors.__version__,
                "numpy": numpy.__version__}
    for name in sys.argv[1:] or CASES:
        write_case(name)
        manifest[name] = versions
    path.write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
