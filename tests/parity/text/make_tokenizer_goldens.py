#!/usr/bin/env python3
"""Makes the tokenizers and the expected ids that tests/model/text/tokenizer_parity_test.cpp reads.

    python tests/parity/text/make_tokenizer_goldens.py [--models DIR] [--mistral DIR] [--only NAME]

Needs the packages tokenizers, transformers, sentencepiece and gguf. The oracle is `tokenizers` for
everything but `sentencepiece`, whose own library is the oracle. Small tokenizers with exactly the
pipeline of each model family are trained here on the sample strings; real ones come from the GGUF
files in --models (default ./models) and from the data folder of the package mistral-common
(--mistral), cut down to their first merges so that they can be kept in the repository.
"""

import argparse
import base64
import io
import json
import pathlib
import sys

import sentencepiece
import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import generate_merges

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import text_samples as ts  # noqa: E402

SEED = 20240607
COUNT = 12288
BLOCK = 16
TOKENIZERS = ts.DATA / "tokenizers"
GOLDENS = ts.DATA / "goldens"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEFAULT = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(prefix=False, regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)


def special(*names, **flags):
    return [AddedToken(n, special=True, normalized=False, **flags) for n in names]


def bos_template(tok, bos, eos=None):
    pairs = [(bos, tok.token_to_id(bos))] + ([(eos, tok.token_to_id(eos))] if eos else [])
    return processors.TemplateProcessing(
        single=f"{bos} $A" + (f" {eos}" if eos else ""), special_tokens=pairs)


def train_byte_level(corpus, pre, specials, normalizer=None, vocab=1500, ignore_merges=False):
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator(corpus, trainer)
    tok.add_tokens(specials)
    return tok


def train_sentencepiece_like(corpus, prepend, vocab=1700):
    """A BPE over characters with byte fallback, its byte tokens ordinary entries of the vocabulary."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    trainer = trainers.BpeTrainer(vocab_size=vocab, show_progress=False, limit_alphabet=400,
                                  special_tokens=["<unk>", "<s>", "</s>"] + BYTES)
    tok.train_from_iterator(corpus, trainer)
    data = json.loads(tok.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in BYTES]
    data["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(data))


def sentencepiece_decoder(strip):
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))


def family_tokenizers(corpus):
    """name -> small tokenizer with the pipeline of a family."""
    out = {}
    two = lambda pattern: pre_tokenizers.Sequence([split(pattern), byte_level()])
    llama3 = train_byte_level(corpus, two(LLAMA3), special(
        "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
        "<|python_tag|>"), ignore_merges=True)
    llama3.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), bos_template(llama3, "<|begin_of_text|>")])
    out["llama3"] = llama3
    out["qwen2"] = train_byte_level(
        corpus, two(QWEN2), special("<|endoftext|>", "<|im_start|>", "<|im_end|>") +
        [AddedToken(t, special=False, normalized=False) for t in ("<tool_call>", "</tool_call>", "<think>")],
        normalizer=normalizers.NFC())
    out["gpt-oss"] = train_byte_level(corpus, two(O200K), special(
        "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>",
        "<|channel|>", "<|call|>"))
    llama4 = train_byte_level(corpus, two(O200K), special("<|begin_of_text|>", "<|eot|>", "<|header_start|>"))
    llama4.post_processor = bos_template(llama4, "<|begin_of_text|>")
    out["llama4"] = llama4
    out["tekken"] = train_byte_level(corpus, two(TEKKEN), special("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
                                     ignore_merges=True)
    out["olmo"] = train_byte_level(
        corpus, byte_level(regex=True), special("<|endoftext|>", "<|padding|>") +
        [AddedToken(" " * n, special=False, normalized=True) for n in range(2, 25)],
        normalizer=normalizers.NFC())
    cohere = train_byte_level(
        corpus, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level(regex=True)]),
        special("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"), normalizer=normalizers.NFC())
    cohere.post_processor = bos_template(cohere, "<BOS_TOKEN>")
    out["cohere"] = cohere
    out["phi-2"] = train_byte_level(corpus, byte_level(prefix=True, regex=True), [
        AddedToken("<|endoftext|>", special=True, normalized=True)] + [AddedToken("\t" * n, normalized=False)
                                                                      for n in range(2, 6)])
    out["gguf-default"] = train_byte_level(
        corpus, pre_tokenizers.Sequence([split(p) for p in DEFAULT] + [byte_level()]), special("<|endoftext|>"))

    llama2 = train_sentencepiece_like(corpus, "always")
    llama2.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    llama2.decoder = sentencepiece_decoder(True)
    llama2.post_processor = bos_template(llama2, "<s>")
    out["llama2"] = llama2
    phi3 = Tokenizer.from_str(llama2.to_str())
    phi3.add_tokens(special("<|endoftext|>") + special("<|assistant|>", "<|user|>", "<|end|>", rstrip=True))
    out["phi3"] = phi3
    mistral = Tokenizer.from_str(llama2.to_str())
    mistral.normalizer = None
    mistral.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    mistral.add_tokens(special("[INST]", "[/INST]", "[TOOL_CALLS]"))
    out["mistral"] = mistral
    gemma = train_sentencepiece_like(corpus, "never")
    gemma.normalizer = normalizers.Replace(" ", "▁")
    gemma.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    gemma.decoder = sentencepiece_decoder(False)
    gemma.add_tokens([AddedToken("\n" * n, normalized=False) for n in range(1, 8)] +
                     [AddedToken("▁" * n, normalized=False) for n in range(2, 8)] +
                     [AddedToken(t, normalized=False) for t in ("<table>", "</table>", "<h1>", "</li>")] +
                     special("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"))
    gemma.post_processor = bos_template(gemma, "<bos>")
    out["gemma"] = gemma

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([
        normalizers.NFKC(), normalizers.Strip(True, True), normalizers.Replace(Regex(" {2,}"), " ")])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    unigram.decoder = decoders.Metaspace(prepend_scheme="always")
    unigram.train_from_iterator(corpus, trainers.UnigramTrainer(
        vocab_size=1500, show_progress=False, unk_token="<unk>", special_tokens=["<pad>", "</s>", "<unk>"]))
    unigram.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", unigram.token_to_id("</s>"))])
    out["unigram"] = unigram
    data = json.loads(unigram.to_str())
    scores = data["model"]["vocab"]
    scores += [[b, -20.0] for b in BYTES if b not in {p for p, _ in scores}]
    data["model"]["byte_fallback"] = True
    data["normalizer"] = None
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    fallback = Tokenizer.from_str(json.dumps(data))
    fallback.decoder = sentencepiece_decoder(True)
    out["unigram-bytes"] = fallback

    # No family's, but every other component that is supported.
    misc = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    misc.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.Strip()])
    misc.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.Digits(False), pre_tokenizers.CharDelimiterSplit("q"),
        pre_tokenizers.Split(Regex("[aeiou]"), "merged_with_next"),
        pre_tokenizers.Split("x", "removed", invert=False)])
    misc.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=900, limit_alphabet=200, show_progress=False, special_tokens=["<unk>"]))
    misc.add_tokens([AddedToken("the", single_word=True, normalized=True),
                     AddedToken("HTTPServer", lstrip=True, normalized=True),
                     AddedToken("👋", lstrip=True, rstrip=True, normalized=False),
                     AddedToken("<s>", special=True, normalized=True)])
    out["components"] = misc
    words = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    words.normalizer = normalizers.NFKD()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=900, limit_alphabet=200, show_progress=False, special_tokens=["<unk>", "<s>"]))
    words.post_processor = processors.RobertaProcessing(("<s>", 1), ("<unk>", 0))
    out["words"] = words
    return out


def cut_bpe(data, merges_kept):
    """The tokenizer.json `data` with its first merges only, ids packed."""
    data["model"]["merges"] = data["model"]["merges"][:merges_kept]
    keep = {t["content"] for t in data["added_tokens"]} | set(BYTES)
    for merge in data["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        keep |= {left, right, left + right}
    vocab = data["model"]["vocab"]
    kept = sorted((i, t) for t, i in vocab.items() if t in keep or len(t) == 1 and ord(t) < 0x250)
    data["model"]["vocab"] = {t: n for n, (_, t) in enumerate(kept)}
    for t in data["added_tokens"]:
        t["id"] = data["model"]["vocab"].get(t["content"], t["id"])
    return data


def real_mistral(folder):
    """Mistral's own tokenizers: SentencePiece v7, and Tekken."""
    out = {}
    sp = sentencepiece.SentencePieceProcessor(model_file=str(folder / "mistral_instruct_tokenizer_241114.model.v7"))
    vocab = {sp.id_to_piece(i): i for i in range(sp.vocab_size())}
    scores = [(sp.id_to_piece(i), sp.get_score(i)) for i in range(sp.vocab_size())
              if not sp.is_control(i) and not sp.is_byte(i) and not sp.is_unknown(i)]
    tok = Tokenizer(models.BPE(vocab, generate_merges(vocab, scores), unk_token="<unk>", byte_fallback=True,
                               fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = sentencepiece_decoder(True)
    tok.add_special_tokens(special("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"))
    tok = Tokenizer.from_str(json.dumps(cut_bpe(json.loads(tok.to_str()), 6000)))
    tok.post_processor = bos_template(tok, "<s>")
    out["mistral-v7-cut"] = tok

    tekken = json.loads((folder / "tekken_240911.json").read_text())
    alphabet = {}
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    for b in range(256):
        alphabet[b] = chr(b) if b in printable else chr(256 + sum(1 for x in range(b) if x not in printable))
    ranks = {base64.b64decode(v["token_bytes"]): v["rank"] for v in tekken["vocab"][:5000]}
    spell = lambda token: "".join(alphabet[b] for b in token)
    merges = []
    for token, rank in ranks.items():  # the two parts that merging by rank leaves of a token
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:
            best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], 1 << 60))
            if ranks.get(parts[best] + parts[best + 1], 1 << 60) >= rank:
                break
            parts[best:best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((spell(parts[0]), spell(parts[1])))
    tok = Tokenizer(models.BPE({spell(t): r for t, r in ranks.items()}, merges, ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([split(tekken["config"]["pattern"]), byte_level()])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(special("<unk>", "<s>", "</s>", "[INST]", "[/INST]"))
    tok.post_processor = bos_template(tok, "<s>")
    out["tekken-cut"] = tok
    return out


def gguf_tokenizer(path):
    """What `tokenizers` makes of the vocabulary in a GGUF file."""
    import gguf
    fields = gguf.GGUFReader(str(path)).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    tokens, types = get("tokens"), get("token_type")
    vocab = {t: i for i, t in enumerate(tokens)}
    if get("model") == "llama":
        scores = get("scores")
        normal = {t: i for t, i in vocab.items() if types[i] == 1}
        merges = generate_merges(normal, [(t, scores[i]) for t, i in normal.items()])
        tok = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tok.normalizer = normalizers.Replace(" ", "▁")
        tok.decoder = sentencepiece_decoder(False)
    else:
        merges = [tuple(m.split(" ")) for m in get("merges")]
        tok = Tokenizer(models.BPE(vocab, merges))
        tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level(regex=True)])
        tok.decoder = decoders.ByteLevel()
    tok.add_tokens([AddedToken(t, special=types[i] == 3, normalized=False)
                    for i, t in enumerate(tokens) if types[i] in (3, 4)])
    if "tokenizer.ggml.add_bos_token" in fields and get("add_bos_token"):
        tok.post_processor = bos_template(tok, tokens[get("bos_token_id")])
    return tok


def sentencepiece_vocab(corpus):
    """A SentencePiece BPE, as the fields that its GGUF file would have, and its processor."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(s.replace("\n", " ") for s in corpus if s.strip()), model_writer=model,
        vocab_size=1600, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, character_coverage=0.98, user_defined_symbols=["<table>", "\n", "\n\n"],
        minloglevel=2, num_threads=1)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kind = lambda i: (2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i)
                      else 4 if sp.id_to_piece(i) in ("<table>", "\n", "\n\n") else 1)
    return sp, {
        "model": "llama", "tokens": [sp.id_to_piece(i) for i in range(sp.vocab_size())],
        "scores": [sp.get_score(i) for i in range(sp.vocab_size())],
        "token_types": [kind(i) for i in range(sp.vocab_size())], "bos": 1, "eos": 2, "unk": 0}


def expand_byte_runs(tokens):
    """HF replaces a whole run of byte tokens if any of it is invalid, which no stream can do. Ours
    keeps the characters that are valid and replaces the other bytes one by one."""
    out, run = [], bytearray()

    def flush():
        text = bytes(run).decode("utf-8", errors="surrogateescape")
        out.extend("\ufffd" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)
        run.clear()

    for t in tokens:
        if len(t) == 6 and t.startswith("<0x") and t.endswith(">"):
            run.append(int(t[3:5], 16))
        else:
            flush()
            out.append(t)
    flush()
    return out


class Decoding:
    """Decoding as `tokenizers` does it, but for runs of byte tokens (expand_byte_runs)."""

    def __init__(self, tok):
        self.tok = tok
        self.special = {t.content for t in tok.get_added_tokens_decoder().values() if t.special}
        self.has_bytes = tok.decoder is not None and bool(json.loads(tok.to_str())["model"].get("byte_fallback"))

    def __call__(self, ids, skip):
        if not self.has_bytes:
            return self.tok.decode(ids, skip_special_tokens=skip)
        tokens = [self.tok.id_to_token(i) for i in ids]
        return self.tok.decoder.decode(expand_byte_runs([t for t in tokens if not (skip and t in self.special)]))


def random_ids(rng, size):
    return [rng.below(size) for _ in range(rng.below(9))]


def write_golden(name, tok, strings, sweep=True):
    encode, plain, decoded = [], [], []
    decode = Decoding(tok)
    size = tok.get_vocab_size()
    tok.encode_special_tokens = False
    parsed = [e.ids for e in tok.encode_batch(strings)]
    tok.encode_special_tokens = True
    unparsed = [e.ids for e in tok.encode_batch(strings, add_special_tokens=False)]
    for start in range(0, COUNT, BLOCK):
        a, b, c = ts.FNV_START, ts.FNV_START, ts.FNV_START
        for i in range(start, start + BLOCK):
            a, b = ts.fnv(a, parsed[i] + [-1]), ts.fnv(b, unparsed[i] + [-1])
            if i % 4 == 0:
                ids = random_ids(ts.Stream(SEED + i), size)
                for seq in (parsed[i], ids):
                    for skip in (False, True):
                        c = ts.fnv(c, list(decode(seq, skip).encode()) + [-1])
        encode.append(f"{a:016x}")
        plain.append(f"{b:016x}")
        decoded.append(f"{c:016x}")
    tok.encode_special_tokens = False
    golden = {
        "made_with": f"tokenizers {tokenizers.__version__}, transformers {transformers.__version__}, "
                     f"sentencepiece {sentencepiece.__version__}",
        "seed": SEED, "count": COUNT, "block": BLOCK, "vocab_size": size,
        "encode": encode, "encode_plain": plain, "decode": decoded,
        "examples": [{"text": strings[i], "ids": parsed[i]} for i in range(0, 24)],
    }
    if sweep:
        golden["sweep"] = []
        for _, points in ts.sweep_code_points():
            h = ts.FNV_START
            for e in tok.encode_batch([ts.sweep_text(c) for c in points], add_special_tokens=False):
                h = ts.fnv(h, e.ids + [-1])
            golden["sweep"].append(f"{h:016x}")
    save_golden(name, golden)


def save_golden(name, golden):
    GOLDENS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(golden, ensure_ascii=True, indent=None, separators=(",", ":"))
    (GOLDENS / f"{name}.json").write_text(text.replace('],"', '],\n"') + "\n")
    print(name, len(text), flush=True)


def write_sentencepiece_golden(strings, corpus):
    sp, vocab = sentencepiece_vocab(corpus)
    TOKENIZERS.mkdir(parents=True, exist_ok=True)
    (TOKENIZERS / "sentencepiece.gguf.json").write_text(json.dumps(vocab, separators=(",", ":")))
    encode, decoded = [], []
    # SentencePiece takes the escape sign for a blank, so strings with it are left out.
    for start in range(0, COUNT, BLOCK):
        a, c = ts.FNV_START, ts.FNV_START
        for i in range(start, start + BLOCK):
            text = "" if "▁" in strings[i] or "<s>" in strings[i] or "<table>" in strings[i] or "\n" in strings[i] else strings[i]
            ids = sp.encode(text)
            a = ts.fnv(a, ids + [-1])
            c = ts.fnv(c, list(sp.decode(ids).encode()) + [-1])
        encode.append(f"{a:016x}")
        decoded.append(f"{c:016x}")
    save_golden("sentencepiece", {
        "made_with": f"sentencepiece {sentencepiece.__version__}", "seed": SEED, "count": COUNT,
        "block": BLOCK, "vocab_size": sp.vocab_size(), "encode": encode, "decode": decoded})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=pathlib.Path, default=pathlib.Path("models"))
    parser.add_argument("--mistral", type=pathlib.Path, help="mistral_common/data")
    parser.add_argument("--only", help="write this golden only")
    args = parser.parse_args()
    pieces = ts.fragments()
    strings = [ts.sample(SEED, i, pieces) for i in range(COUNT)]
    known = set("".join(pieces)) | set(" \n\t0123456789")
    corpus = ["".join(c for c in ts.sample(7, i, pieces[:130]) if c in known) for i in range(6000)]

    made = {}
    if args.only not in ("sentencepiece", "gemma3-gguf", "smollm2-gguf"):
        made = family_tokenizers(corpus)
        if args.mistral:
            made |= real_mistral(args.mistral)
    TOKENIZERS.mkdir(parents=True, exist_ok=True)
    for name, tok in made.items():
        if args.only and name != args.only:
            continue
        data = json.loads(tok.to_str())
        (TOKENIZERS / f"{name}.json").write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")))
        write_golden(name, Tokenizer.from_str(json.dumps(data)), strings)
    if not args.only or args.only == "sentencepiece":
        write_sentencepiece_golden(strings, corpus)
    for name, file in (("gemma3-gguf", "gemma-3-270m-q4_k_m.gguf"),
                       ("smollm2-gguf", "SmolLM2-135M-Instruct.Q4_1.gguf")):
        if (args.models / file).exists() and (not args.only or name == args.only):
            write_golden(name, gguf_tokenizer(args.models / file), strings)


if __name__ == "__main__":
    main()
