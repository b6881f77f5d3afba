#!/usr/bin/env python3
"""Attention kernels beside PyTorch's on the same tensors, in one run: ceilings first, then a table.

Usage: attention_bench.py LIBRARY [--groups dense,sparse,window,density,chunk,packed,decode,fp8,latent]
       [--peers cudnn,flex]
Rates: prefill counts 4 * 128 * 128 * head size operations for every 128 x 128 tile that a list names
(tiles on the diagonal whole); decode counts the bytes of the listed keys and values. Latents count
2 * (576 + 512) operations for a query head and key that it sees, and bytes once.
"""
import argparse
import ctypes
import math
import statistics
import sys

import torch

DEVICE = "cuda"
PAGE = 64


class Call(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in
                "q k v out lse table kv_lens tiles list_begin list_count entries edges".split()] + [
        (n, ctypes.c_int64) for n in
        "rows query_heads kv_heads head_dim num_pages table_stride num_sequences num_tiles "
        "list_heads num_list_heads entry_tokens query_tile num_entries type value_dim".split()] + [
        ("scale", ctypes.c_double)]


def timed(run, repeats=10, warm=3):
    """Median and spread of the device time of run(), in milliseconds."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        run()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b))
    return statistics.median(times)


def graphed(runs, repeats=20):
    """Median time of one of `runs` (each on its own buffers), replayed back to back as a graph."""
    for r in runs:
        r()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for r in runs:
            r()
    return timed(graph.replay, repeats) / len(runs)


ROWS = []


def report(name, ms, rate, unit, ceiling, peer=None, peer_ms=None, note=""):
    ratio = f"{peer_ms / ms:5.2f}x {peer}" if peer_ms else ""
    ROWS.append(f"{name:46s} {ms:9.4f} ms {rate:8.2f} {unit:7s} {rate / ceiling:6.1%} of ceiling "
                f"{ratio} {note}")
    print(ROWS[-1], flush=True)


class Library:
    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.ls_prefill_scratch.restype = ctypes.c_int64
        self.lib.ls_decode_scratch.restype = ctypes.c_int64

    def check(self, code, what):
        if code != 0:
            sys.exit(f"{what}: CUDA error {code}")

    def stream(self):
        return ctypes.c_int64(torch.cuda.current_stream().cuda_stream)

    def prefill(self, problem, packed=0, portable=0):
        call = problem.call
        scratch = torch.zeros(self.lib.ls_prefill_scratch(ctypes.byref(call)), dtype=torch.uint8,
                              device=DEVICE)
        at = ctypes.c_void_p(scratch.data_ptr())

        def plan():
            self.check(self.lib.ls_prefill_plan(ctypes.byref(call), packed, at, self.stream()),
                       "plan")

        def run():
            self.check(self.lib.ls_prefill(ctypes.byref(call), portable, packed, at, self.stream()), "prefill")
        plan.keep = run.keep = (scratch, problem)
        return plan, run

    def decode(self, problem, max_pages, portable=0):
        call = problem.call
        size = self.lib.ls_decode_scratch(ctypes.byref(call), max_pages)
        scratch = torch.zeros(size, dtype=torch.uint8, device=DEVICE)
        at = ctypes.c_void_p(scratch.data_ptr())

        def plan():
            self.check(self.lib.ls_decode_plan(ctypes.byref(call), max_pages, at, self.stream()),
                       "plan")

        def run():
            self.check(self.lib.ls_decode(ctypes.byref(call), portable, max_pages, at, self.stream()),
                       "decode")
        plan.keep = run.keep = (scratch, problem)
        return plan, run


class Problem:
    """One attention call; keeps its tensors alive."""

    def __init__(self, q, pages_k, pages_v, table, kv_lens, tiles, lists, edges, query_tile,
                 list_heads, head_dim, num_list_heads):
        begin, count, entries = lists
        rows, heads = q.shape[0], q.shape[1]
        self.out = torch.full_like(q, float("nan"))
        self.lse = torch.full((rows, heads), float("nan"), device=DEVICE)
        self.keep = (q, pages_k, pages_v, table, kv_lens, tiles, begin, count, entries, edges)
        c = self.call = Call()
        for name, t in dict(q=q, k=pages_k, v=pages_v, out=self.out, lse=self.lse, table=table,
                            kv_lens=kv_lens, tiles=tiles, list_begin=begin, list_count=count,
                            entries=entries, edges=edges).items():
            setattr(c, name, t.data_ptr())
        c.rows, c.query_heads, c.head_dim = rows, heads, head_dim
        c.num_pages, c.kv_heads = pages_k.shape[0], pages_k.shape[1]
        c.table_stride, c.num_sequences = table.shape[1], table.shape[0]
        c.num_tiles, c.list_heads, c.num_list_heads = tiles.shape[0], list_heads, num_list_heads
        c.entry_tokens, c.query_tile, c.num_entries = PAGE, query_tile, entries.numel()
        c.type, c.scale = {torch.bfloat16: 0, torch.float16: 1}[q.dtype], 1.0 / math.sqrt(head_dim)
        if pages_k.dtype == torch.float8_e4m3fn:
            c.type = 2


def paged(x):
    """[heads, tokens, dim] as shuffled pages [page, head, 64, dim], and the page table."""
    heads, tokens, dim = x.shape
    n = tokens // PAGE
    return x.view(heads, n, PAGE, dim).transpose(0, 1).contiguous()


def i32(values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def prefill_problem(q, k, v, block_mask, list_heads, window=0):
    """q, k, v [heads, tokens, dim]; block_mask [list heads, tiles, tiles] of 128 x 128 blocks, or
    None for dense causal; then q may be the last rows alone."""
    heads, tokens, dim = q.shape[0], k.shape[1], q.shape[2]
    first = tokens - q.shape[1]
    tiles_n = (q.shape[1] + 127) // 128
    n_pages = tokens // PAGE
    order = torch.randperm(n_pages, device=DEVICE)
    pk, pv = torch.empty_like(paged(k)), torch.empty_like(paged(v))
    pk[order], pv[order] = paged(k), paged(v)
    table = order.to(torch.int32).view(1, -1).contiguous()
    tiles = torch.stack([torch.zeros(tiles_n), torch.arange(tiles_n) * 128,
                         torch.full((tiles_n,), 128), first + torch.arange(tiles_n) * 128],
                        dim=1).to(torch.int32).to(DEVICE).contiguous()
    if block_mask is None:
        begin = torch.zeros(tiles_n, dtype=torch.int64, device=DEVICE)
        count = (first // PAGE + (torch.arange(tiles_n, device=DEVICE) + 1) * 2).to(torch.int32)
        entries = torch.arange(n_pages, dtype=torch.int32, device=DEVICE)
        list_n = 1
    else:
        list_n = block_mask.shape[0]
        by_page = block_mask.repeat_interleave(2, dim=2)
        count = by_page.sum(2).flatten().to(torch.int32)
        begin = torch.cumsum(count.to(torch.int64), 0) - count
        entries = by_page.nonzero()[:, 2].to(torch.int32).contiguous()
    edges = i32([[1, window, 0, 0]] * list_n)
    rows_q = q.transpose(0, 1).contiguous()
    return Problem(rows_q, pk, pv, table, i32([tokens]), tiles, (begin, count, entries), edges, 128,
                   list_heads, dim, list_n)


def difference(a, b):
    a, b = a.float(), b.float()
    return ((a - b).norm() / b.norm()).item()


def tile_flops(tiles, dim):
    return 4.0 * 128 * 128 * dim * tiles


def random_mask(heads, tiles, density):
    """density of the blocks below the diagonal, per head, plus the diagonal."""
    g = torch.Generator(device=DEVICE).manual_seed(7)
    m = torch.rand(heads, tiles, tiles, device=DEVICE, generator=g) < density
    m = torch.tril(m, -1)
    return m | torch.eye(tiles, dtype=torch.bool, device=DEVICE)


def window_mask(tiles, window):
    i = torch.arange(tiles, device=DEVICE)
    first = ((i * 128 - window + 1).clamp(min=0)) // 128
    return ((i[None, :] >= first[:, None]) & (i[None, :] <= i[:, None]))[None]


class Peers:
    def __init__(self, names):
        self.names = names
        self.flex = None

    def cudnn(self, q, k, v):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=q.shape[1] > 1, enable_gqa=True)

    def flex_run(self, q, k, v, mask, window=0):
        from torch.nn.attention.flex_attention import BlockMask, flex_attention
        if self.flex is None:
            self.flex = torch.compile(flex_attention, dynamic=False)
        diagonal = torch.eye(mask.shape[1], dtype=torch.bool, device=DEVICE)[None]
        partial = mask & diagonal
        if window:
            t = torch.arange(mask.shape[1], device=DEVICE)
            low = t[:, None] * 128 + 127 - window  # the last row no longer sees this position
            partial = mask & (diagonal | ((t[None, :] * 128) <= low)[None])

        def ordered(m):
            n = m.sum(2).to(torch.int32)[None]
            return n, torch.argsort((~m).to(torch.uint8), dim=2, stable=True).to(torch.int32)[None]
        pn, pi = ordered(partial)
        fn, fi = ordered(mask & ~partial)

        def causal(b, h, i, j):
            return i >= j

        def sliding(b, h, i, j):
            return (i >= j) & (i - j < window)
        block = BlockMask.from_kv_blocks(pn, pi, fn, fi, BLOCK_SIZE=(128, 128),
                                         mask_mod=sliding if window else causal)
        return lambda: self.flex(q[None], k[None], v[None], block_mask=block, enable_gqa=True)


def ceilings():
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    b = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    flops = 2 * 8192 ** 3 / timed(lambda: a @ b) / 1e9
    x = torch.empty(1 << 32, device=DEVICE, dtype=torch.uint8)
    x.random_(0, 255)
    y = torch.empty_like(x)
    copy = 2 * x.numel() / timed(lambda: y.copy_(x)) / 1e9
    f = x.view(torch.float32)
    read = x.numel() / timed(lambda: torch.sum(f)) / 1e9
    print(f"ceilings: GEMM {flops:.0f} TFLOP/s, copy {copy:.2f} TB/s, read {read:.2f} TB/s")
    return flops, max(read, copy)


def qkv(tokens, heads, kv_heads, dim, seed=0):
    g = torch.Generator(device=DEVICE).manual_seed(seed)
    make = lambda h: torch.randn(h, tokens, dim, device=DEVICE, dtype=torch.bfloat16, generator=g)
    return make(heads), make(kv_heads), make(kv_heads)


def bench_density(lib, ceiling, tokens, dim=128, heads=32, kv_heads=8):
    """What a share of the active tiles costs of the faster dense call, ours or cuDNN's."""
    q, k, v = qkv(tokens, heads, kv_heads, dim)
    tiles = tokens // 128
    every = tiles * (tiles + 1) // 2 * heads
    peer = Peers([])

    def ours(mask):
        plan, run = lib.prefill(prefill_problem(q, k, v, mask, 0 if mask is None else 2))
        plan()
        return timed(run, 7, 2)
    dense, cudnn = ours(None), timed(lambda: peer.cudnn(q, k, v), 5, 2)
    for share, bar in ((0.1, 0.12), (0.02, 0.035), (0.01, None)):
        mask = random_mask(heads, tiles, share)
        active, ms = mask.sum().item(), ours(mask)
        ratio = ms / min(dense, cudnn)
        report(f"ours density {active / every:.1%} {tokens // 1024}K d{dim}", ms,
               tile_flops(active, dim) / ms / 1e9, "TFLOP/s", ceiling,
               note=f"{ratio:.4f} of dense (ours {dense:.1f}, cuDNN {cudnn:.1f} ms)"
               + (f", bar {bar}" if bar else ""))


def bench_chunk(lib, ceiling, tokens, dim=128, heads=32, kv_heads=8):
    """The last rows of a long dense prompt: what a step of a bounded time can compute of it."""
    q, k, v = qkv(tokens, heads, kv_heads, dim)
    for rows in (128, 256, 512, 1024, 2048, 8192):
        plan, run = lib.prefill(prefill_problem(q[:, -rows:], k, v, None, 0))
        plan()
        ms = timed(run)
        pairs = rows // 128 * (tokens // 128) - (rows // 128) * (rows // 128 - 1) // 2
        report(f"ours last {rows} rows of {tokens // 1024}K d{dim}", ms,
               tile_flops(pairs * heads, dim) / ms / 1e9, "TFLOP/s", ceiling)


def bench_prefill(lib, peers, groups, ceiling, lengths, dim=128, heads=32, kv_heads=8):
    for tokens in lengths:
        q, k, v = qkv(tokens, heads, kv_heads, dim)
        tiles = tokens // 128
        label = f"{tokens // 1024}K d{dim}"
        if "dense" in groups:
            flops = tile_flops(tiles * (tiles + 1) // 2 * heads, dim)
            peer_ms = None
            if "cudnn" in peers.names:
                want = peers.cudnn(q, k, v)
                peer_ms = timed(lambda: peers.cudnn(q, k, v), 5, 2)
                report(f"cuDNN dense causal {label}", peer_ms, flops / peer_ms / 1e9, "TFLOP/s",
                       ceiling)
            for packed in (0, 1) if "packed" in groups else (0,):
                problem = prefill_problem(q, k, v, None, 0)
                plan, run = lib.prefill(problem, packed)
                plan()
                ms = timed(run, 5, 2)
                note = ""
                if peer_ms:
                    note = f"diff {difference(problem.out, want[0].transpose(0, 1)):.1e}"
                note += f" plan {timed(plan):.3f} ms"
                name = "packed" if packed else "plain"
                report(f"ours dense causal {name} {label}", ms, flops / ms / 1e9, "TFLOP/s", ceiling,
                       "cuDNN", peer_ms, note)
        for kind in ("sparse", "window"):
            if kind not in groups:
                continue
            window = 4096 if kind == "window" else 0
            mask = window_mask(tiles, window) if window else random_mask(heads, tiles, 0.1)
            active = mask.sum().item() * (heads if window else 1)
            flops = tile_flops(active, dim)
            name = "window 4096" if window else "random 10% per head"
            problem = prefill_problem(q, k, v, mask, 0 if window else 2, window)
            plan, run = lib.prefill(problem)
            plan()
            ms = timed(run)
            plan_ms = timed(plan)
            peer_ms, note = None, f"plan {plan_ms:.3f} ms"
            if "flex" in peers.names:
                flex = peers.flex_run(q, k, v, mask, window)
                want = flex()
                note += f" diff {difference(problem.out, want[0].transpose(0, 1)):.1e}"
                peer_ms = timed(flex, 5, 2)
                report(f"FlexAttention {name} {label}", peer_ms, flops / peer_ms / 1e9, "TFLOP/s",
                       ceiling)
            report(f"ours {name} {label}", ms, flops / ms / 1e9, "TFLOP/s", ceiling,
                   "FlexAttention", peer_ms, note)
        del q, k, v


def decode_problem(batch, tokens, keys, heads, kv_heads, dim, pk, pv, table, offset):
    """keys per KV head and sequence out of tokens, as pages; keys == tokens is dense."""
    pages, n = tokens // PAGE, keys // PAGE
    q = torch.randn(batch, heads, dim, device=DEVICE, dtype=torch.bfloat16)
    tiles = torch.tensor([[b, b, 1, tokens - 1] for b in range(batch)], dtype=torch.int32,
                         device=DEVICE)
    if n == pages:
        entries = torch.arange(pages, dtype=torch.int32, device=DEVICE)
        count = torch.full((batch,), pages, dtype=torch.int32, device=DEVICE)
        begin = torch.zeros(batch, dtype=torch.int64, device=DEVICE)
        list_heads, list_n = 0, 1
    else:
        g = torch.Generator(device=DEVICE).manual_seed(offset)
        scores = torch.rand(kv_heads, batch, pages, device=DEVICE, generator=g)
        scores[:, :, -1] = 2.0
        entries = scores.topk(n, dim=2).indices.sort(dim=2).values.to(torch.int32).flatten()
        entries = entries.contiguous()
        count = torch.full((kv_heads * batch,), n, dtype=torch.int32, device=DEVICE)
        begin = torch.arange(kv_heads * batch, dtype=torch.int64, device=DEVICE) * n
        list_heads, list_n = 1, kv_heads
    edges = i32([[1, 0, 0, 0]] * list_n)
    return Problem(q, pk, pv, table, i32([tokens] * batch), tiles, (begin, count, entries), edges, 1,
                   list_heads, dim, list_n)


def bench_decode(lib, peers, ceiling, dim=128, heads=32, kv_heads=8):
    tokens = 131072
    shapes = [(1, tokens), (8, tokens)]
    shapes += [(b, n) for b in (1, 4, 8, 16, 32, 64) for n in (2048, 8192)]
    most = 64 * tokens  # a pool of 64 sequences would be 34 GB; sequences share pages beyond it
    pool = 16 * (tokens // PAGE)
    pk = torch.randn(pool, kv_heads, PAGE, dim, device=DEVICE, dtype=torch.bfloat16)
    pv = torch.randn(pool, kv_heads, PAGE, dim, device=DEVICE, dtype=torch.bfloat16)
    for batch, keys in shapes:
        sets = 4 if keys < tokens else 2
        problems, runs, plans = [], [], []
        for s in range(sets):
            table = torch.stack([torch.randperm(pool, device=DEVICE)[:tokens // PAGE]
                                 for _ in range(batch)]).to(torch.int32).contiguous()
            problem = decode_problem(batch, tokens, keys, heads, kv_heads, dim, pk, pv, table, s)
            plan, run = lib.decode(problem, keys // PAGE)
            plan()
            problems.append(problem)
            plans.append(plan)
            runs.append(run)
        gb = batch * keys * kv_heads * dim * 2 * 2 / 1e9
        ms = graphed(runs * (8 if gb < 0.3 else 1))
        plan_ms = graphed(plans)
        peer_ms, note = None, f"plan {plan_ms * 1e3:.1f} us, reads {gb * 1e3:.0f} MB"
        if keys == tokens and "cudnn" in peers.names:
            table = problems[0].keep[3].long()
            k = pk[table].permute(0, 2, 1, 3, 4).reshape(batch, kv_heads, tokens, dim)
            v = pv[table].permute(0, 2, 1, 3, 4).reshape(batch, kv_heads, tokens, dim)
            q = problems[0].keep[0].view(batch, heads, 1, dim)
            from torch.nn.attention import SDPBackend, sdpa_kernel

            def cudnn():
                with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                    return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            note += f" diff {difference(problems[0].out, cudnn()[:, :, 0]):.1e}"
            peer_ms = timed(cudnn)
            report(f"cuDNN decode B={batch} dense 128K", peer_ms, gb / peer_ms, "TB/s", ceiling)
            del k, v
        bound = 0.025 + gb / ceiling
        if keys < tokens and gb * 1e3 < 256:
            note += f", bound {bound * 1e3:.0f} us"
        report(f"ours decode B={batch} {keys // 1024}K of 128K", ms, gb / ms, "TB/s", ceiling, "cuDNN",
               peer_ms, note)


def with_fp8(pages):
    """Pages of e4m3, and the same values in bf16."""
    codes = pages.to(torch.float8_e4m3fn)
    return codes, codes.to(torch.bfloat16)


def replaced(problem, q, pages_k, pages_v):
    """The same call on other queries and pages."""
    _, _, _, table, kv_lens, tiles, begin, count, entries, edges = problem.keep
    c = problem.call
    return Problem(q, pages_k, pages_v, table, kv_lens, tiles, (begin, count, entries), edges,
                   c.query_tile, c.list_heads, c.head_dim, c.num_list_heads)


def bench_fp8(lib, flop_ceiling, byte_ceiling, lengths, dim=128, heads=32, kv_heads=8):
    """e4m3 caches beside bf16 caches of the same values."""
    for tokens in lengths:
        q, k, v = qkv(tokens, heads, kv_heads, dim)
        tiles = tokens // 128
        for name, mask, list_heads in (("dense causal", None, 0),
                                       ("random 10% per head", random_mask(heads, tiles, 0.1), 2)):
            active = tiles * (tiles + 1) // 2 * heads if mask is None else mask.sum().item()
            flops = tile_flops(active, dim)
            first = prefill_problem(q, k, v, mask, list_heads)
            k8, k16 = with_fp8(first.keep[1])
            v8, v16 = with_fp8(first.keep[2])
            for portable in (0, 1) if tokens <= 32768 else (0,):
                problems = [replaced(first, first.keep[0], k16, v16),
                            replaced(first, first.keep[0].half(), k8, v8)]
                times = []
                for problem in problems:
                    plan, run = lib.prefill(problem, portable=portable)
                    plan()
                    times.append(timed(run, 5, 2))
                path = "portable" if portable else "fast"
                label = f"{path} {name} {tokens // 1024}K d{dim}"
                report(f"bf16 cache {label}", times[0], flops / times[0] / 1e9, "TFLOP/s",
                       flop_ceiling)
                report(f"fp8 cache {label}", times[1], flops / times[1] / 1e9, "TFLOP/s",
                       flop_ceiling, "bf16", times[0],
                       f"diff {difference(problems[1].out, problems[0].out):.1e}")
        del q, k, v, first, k8, k16, v8, v16, problems
    tokens = 131072
    pool = 16 * (tokens // PAGE)
    make = lambda: with_fp8(torch.randn(pool, kv_heads, PAGE, dim, device=DEVICE,
                                        dtype=torch.bfloat16))
    (k8, k16), (v8, v16) = make(), make()
    for batch, keys in ((1, tokens), (8, tokens), (1, 8192), (8, 8192), (64, 8192)):
        for portable in (0, 1) if keys == tokens else (0,):
            of_type = [[], []]
            outs = [[], []]
            for s in range(2 if keys == tokens else 4):
                table = torch.stack([torch.randperm(pool, device=DEVICE)[:tokens // PAGE]
                                     for _ in range(batch)]).to(torch.int32).contiguous()
                first = decode_problem(batch, tokens, keys, heads, kv_heads, dim, k16, v16, table, s)
                for t, problem in enumerate((first, replaced(first, first.keep[0].half(), k8, v8))):
                    plan, run = lib.decode(problem, keys // PAGE, portable)
                    plan()
                    of_type[t].append(run)
                    outs[t].append(problem.out)
            gb = batch * keys * kv_heads * dim * 2 * 2 / 1e9
            times = [graphed(runs * (8 if gb < 0.6 else 1)) for runs in of_type]
            label = f"{'portable' if portable else 'fast'} decode B={batch} {keys // 1024}K of 128K"
            report(f"bf16 cache {label}", times[0], gb / times[0], "TB/s", byte_ceiling)
            report(f"fp8 cache {label}", times[1], gb / 2 / times[1], "TB/s", byte_ceiling, "bf16",
                   times[0], f"diff {difference(outs[1][0], outs[0][0]):.1e}")


LATENT, VALUE = 576, 512
PATHS = ("fast", "portable")


def latent_problem(problem):
    problem.call.value_dim = VALUE
    return problem


def absorbed(q, latents):
    """The same by matrix products: q [batch, rows, 576], latents [batch, keys, 576], all visible."""
    scores = torch.bmm(q * LATENT ** -0.5, latents.transpose(1, 2))
    return torch.bmm(torch.softmax(scores, 2), latents[:, :, :VALUE])


def bench_latent(lib, flop_ceiling, byte_ceiling, heads=128):
    """Absorbed latent attention (DeepSeek): one KV head, whose keys' first channels are the values.
    Peers: the same by matrix products, which store the scores; for prompts PyTorch's attention on keys
    and values expanded to 192 and 128 channels a head, without the expansion."""
    tokens = 65536
    pool = 16 * (tokens // PAGE)  # 1.2 GB; sequences share pages beyond it
    pages = torch.randn(pool, 1, PAGE, LATENT, device=DEVICE, dtype=torch.bfloat16)
    for batch, keys in ((1, tokens), (8, tokens), (32, tokens), (32, 2048)):
        table = torch.stack([torch.randperm(pool, device=DEVICE)[:tokens // PAGE]
                             for _ in range(batch)]).to(torch.int32).contiguous()
        problem = latent_problem(decode_problem(batch, tokens, keys, heads, 1, LATENT, pages, pages,
                                                table, 0))
        gb, flops = batch * keys * LATENT * 2 / 1e9, 2.0 * batch * keys * heads * (LATENT + VALUE)
        peer_ms, want = None, None
        if keys == tokens and batch <= 8:
            latents = pages[table.long()].reshape(batch, tokens, LATENT)
            q = problem.keep[0]
            want = absorbed(q, latents)
            peer_ms = timed(lambda: absorbed(q, latents))
            report(f"matmul latent decode B={batch} 64K", peer_ms, flops / peer_ms / 1e9, "TFLOP/s",
                   flop_ceiling)
            del latents
        for portable in (0, 1):
            plan, run = lib.decode(problem, keys // PAGE, portable)
            plan()
            ms = graphed([run] * (1 if batch > 8 else 4))
            note = f"{gb / ms:.2f} TB/s ({gb / ms / byte_ceiling:.1%} of ceiling)"
            if want is not None:
                note += f" diff {difference(problem.out[:, :, :VALUE], want):.1e}"
            report(f"{PATHS[portable]} latent decode B={batch} {keys // 1024}K of 64K", ms,
                   flops / ms / 1e9, "TFLOP/s", flop_ceiling, "matmul", peer_ms, note)
    del pages
    tokens = 8192
    q = torch.randn(heads, tokens, LATENT, device=DEVICE, dtype=torch.bfloat16)
    latents = torch.randn(1, tokens, LATENT, device=DEVICE, dtype=torch.bfloat16)
    problem = prefill_problem(q, latents, latents, None, 0)
    problem.call.v = problem.call.k
    latent_problem(problem)
    flops = 2.0 * (LATENT + VALUE) * heads * tokens * (tokens + 1) / 2
    last = absorbed(q[:, -1:].reshape(1, heads, LATENT), latents)
    expanded = [torch.randn(1, heads, tokens, n, device=DEVICE, dtype=torch.bfloat16)
                for n in (192, 192, 128)]

    def sdpa():
        return torch.nn.functional.scaled_dot_product_attention(*expanded, is_causal=True)
    peer_ms = timed(sdpa, 5, 2)
    report("SDPA on expanded keys 8K", peer_ms,
           2.0 * 320 * heads * tokens * (tokens + 1) / 2 / peer_ms / 1e9, "TFLOP/s", flop_ceiling)
    for portable in (0, 1):
        plan, run = lib.prefill(problem, packed=1, portable=portable)
        plan()
        ms = timed(run, 5, 2)
        note = f"last row's diff {difference(problem.out[-1, :, :VALUE], last[0]):.1e}"
        report(f"{PATHS[portable]} latent prefill 8K", ms, flops / ms / 1e9, "TFLOP/s", flop_ceiling,
               "SDPA on expanded keys", peer_ms, note)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--groups", default="dense,sparse,window,density,chunk,packed,decode")
    parser.add_argument("--peers", default="cudnn,flex")
    parser.add_argument("--lengths", default="32768,131072")
    parser.add_argument("--dims", default="128")
    args = parser.parse_args()
    groups, lib, peers = args.groups.split(","), Library(args.library), Peers(args.peers.split(","))
    print(torch.cuda.get_device_name(0), "torch", torch.__version__)
    flops, bytes_rate = ceilings()
    torch.cuda.empty_cache()
    for dim in map(int, args.dims.split(",")):
        bench_prefill(lib, peers, groups, flops, [int(n) for n in args.lengths.split(",")], dim)
        if "density" in groups:
            bench_density(lib, flops, max(int(n) for n in args.lengths.split(",")), dim)
        if "chunk" in groups:
            bench_chunk(lib, flops, max(int(n) for n in args.lengths.split(",")), dim)
        if "fp8" in groups:
            bench_fp8(lib, flops, bytes_rate, [int(n) for n in args.lengths.split(",")], dim)
    if "latent" in groups:
        torch.cuda.empty_cache()
        bench_latent(lib, flops, bytes_rate)
    if "decode" in groups:
        torch.cuda.empty_cache()
        bench_decode(lib, peers, bytes_rate)
    print("\n" + "\n".join(ROWS))


if __name__ == "__main__":
    main()
