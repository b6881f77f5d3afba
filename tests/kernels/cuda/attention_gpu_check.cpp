// Runs the attention kernels on the GPU and compares them with float64. A program of its own: it
// needs the CUDA runtime and nothing else. Exit status 0 if every check holds.
//   attention_gpu_check [substring of the case names] [fast|portable; default: both where they run]
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/cuda/attention/attention.h"
#include "tests/kernels/cuda/attention_case.h"

namespace longstride::kernels::cuda {
namespace {

int failures = 0;
KernelPath path = KernelPath::kFast;
const char* filter = "";

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

struct Scratch {
  explicit Scratch(int64_t bytes) {
    Must(cudaMalloc(&data, bytes), "scratch");
    Must(cudaMemset(data, 0xff, bytes), "scratch");
  }
  ~Scratch() { cudaFree(data); }
  uint32_t Status() const {
    AttentionStatus s;
    Must(cudaMemcpy(&s, data, sizeof(s), cudaMemcpyDeviceToHost), "status");
    return s.status;
  }
  void* data = nullptr;
};

void Expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAIL %s\n", what.c_str());
}

void RunPrefill(AttentionCase* c, PrefillLayout layout) {
  const AttentionParams& p = c->params();
  if (const char* why = PrefillRefusal(p, layout, path))
    return Expect(false, c->spec().name + ": " + why);
  Scratch scratch(PrefillScratchBytes(p, layout));
  c->Poison();
  Must(LaunchPrefillPlan(p, layout, scratch.data, nullptr), "prefill plan");
  // Twice from one plan, as two layers would.
  Must(LaunchPrefill(p, layout, scratch.data, nullptr, path), "prefill");
  Must(LaunchPrefill(p, layout, scratch.data, nullptr, path), "prefill");
  Must(cudaDeviceSynchronize(), c->spec().name.c_str());
  Expect(scratch.Status() == 0, c->spec().name + ": status");
}

void RunDecode(AttentionCase* c) {
  const AttentionParams& p = c->params();
  if (const char* why = DecodeRefusal(p, path)) return Expect(false, c->spec().name + ": " + why);
  const int32_t pages = c->max_list_pages();
  Scratch scratch(DecodeScratchBytes(p, pages));
  c->Poison();
  Must(LaunchDecodePlan(p, pages, scratch.data, nullptr), "decode plan");
  Must(LaunchDecode(p, pages, scratch.data, nullptr, path), "decode");
  Must(LaunchDecode(p, pages, scratch.data, nullptr, path), "decode");
  Must(cudaDeviceSynchronize(), c->spec().name.c_str());
  Expect(scratch.Status() == 0, c->spec().name + ": status");
}

bool Wanted(const std::string& name) { return name.find(filter) != std::string::npos; }

double Tolerance(const CaseSpec& s) { return s.dtype == DType::kBF16 ? 6e-3 : 8e-4; }

const char* TypeSuffix(const CaseSpec& s) {
  return s.fp8 ? " fp8" : s.dtype == DType::kF16 ? " f16" : "";
}

void Prefill(CaseSpec s, PrefillLayout layout = PrefillLayout::kPlain) {
  s.name = std::string("prefill ") + (layout == PrefillLayout::kPacked ? "packed " : "") + s.name +
           " d" + std::to_string(s.head_dim) + TypeSuffix(s);
  if (!Wanted(s.name)) return;
  AttentionCase c(s);
  RunPrefill(&c, layout);
  if (!c.Check(Tolerance(s))) ++failures;
}

void Decode(CaseSpec s) {
  s.name = "decode " + s.name + " d" + std::to_string(s.head_dim) + TypeSuffix(s);
  if (!Wanted(s.name)) return;
  s.query_tile = s.query_tile == 128 ? 1 : s.query_tile;
  AttentionCase c(s);
  RunDecode(&c);
  if (!c.Check(Tolerance(s))) ++failures;
}

CaseSpec Make(const char* name, std::vector<CaseSequence> sequences) {
  CaseSpec s;
  s.name = name;
  s.sequences = std::move(sequences);
  return s;
}

// Cases that every head size and type runs.
void PrefillShapes(int32_t head_dim, DType dtype, bool fp8 = false) {
  const auto both = [&](CaseSpec s) {
    s.head_dim = head_dim;
    s.dtype = dtype;
    s.fp8 = fp8;
    Prefill(s);
    if (s.list_heads != ListHeads::kPerQHead) Prefill(s, PrefillLayout::kPacked);
  };
  both(Make("one token", {{1, 0, 1}}));
  both(Make("page - 1, page, page + 1", {{63, 0, 63}, {64, 0, 64}, {65, 0, 65}}));
  both(Make("tile - 1, tile, tile + 1", {{127, 0, 127}, {128, 0, 128}, {129, 0, 129}}));
  both(Make("dense 1000", {{1000, 0, 1000}}));
  CaseSpec s = Make("chunk in the middle", {{700, 300, 400}, {500, 437, 1}, {129, 100, 29}});
  both(s);
  s = Make("window 100 + sinks", {{777, 0, 777}});
  s.edge.window = 100;
  s.edge.sink_tokens = 5;
  s.sinks = true;
  both(s);
  for (int window : {1, 63, 64, 65, 128, 129}) {
    s = Make("window", {{400, 0, 400}});
    s.edge.window = window;
    s.name.append(" ").append(std::to_string(window));
    both(s);
  }
  s = Make("attention chunks of 96", {{500, 0, 500}});
  s.edge.chunk = 96;
  both(s);
  s = Make("not causal", {{333, 0, 200}, {64, 10, 20}});
  s.edge.causal = 0;
  both(s);
  s = Make("softcap 20, sharp", {{600, 0, 600}});
  s.softcap = 20.0f;
  s.query_scale = 6.0f;
  both(s);
  s = Make("random per q head, holes, empty", {{1500, 0, 1500}, {257, 129, 128}});
  s.list_heads = ListHeads::kPerQHead;
  s.query_heads = 6;
  s.kv_heads = 2;
  s.density = 0.3;
  s.holes = 0.2;
  s.empty = 0.2;
  s.sinks = true;
  both(s);
  s = Make("random per kv head, entries 128", {{1400, 0, 1400}});
  s.list_heads = ListHeads::kPerKvHead;
  s.entry_tokens = 128;
  s.density = 0.4;
  s.holes = 0.1;
  both(s);
  // Lists of three and of two segments, the last of a few pages and of one.
  s = Make("long lists", {{66000, 65990, 10}, {32800, 32780, 20}});
  s.query_heads = 2;
  s.kv_heads = 1;
  s.sinks = true;
  both(s);
  s = Make("tiles of 64, group 8", {{900, 64, 836}});
  s.query_tile = 64;
  s.query_heads = 16;
  s.density = 0.5;
  both(s);
}

void DecodeShapes(int32_t head_dim, DType dtype, bool fp8 = false) {
  const auto run = [&](CaseSpec s) {
    s.head_dim = head_dim;
    s.dtype = dtype;
    s.fp8 = fp8;
    Decode(s);
  };
  run(Make("one token", {{1, 0, 1}}));
  run(Make("ragged", {{63, 62, 1},
                      {64, 63, 1},
                      {65, 64, 1},
                      {1, 0, 1},
                      {5000, 4999, 1},
                      {1024, 1023, 1},
                      {1025, 1024, 1}}));
  CaseSpec s = Make("window 100 + sinks", {{3000, 2999, 1}, {101, 100, 1}, {100, 99, 1}});
  s.edge.window = 100;
  s.edge.sink_tokens = 5;
  s.sinks = true;
  run(s);
  s = Make("softcap", {{700, 699, 1}});
  s.softcap = 20.0f;
  s.query_scale = 6.0f;
  run(s);
  s = Make("selected per kv head, holes, empty", {{9000, 8999, 1}, {2000, 1999, 1}, {70, 69, 1}});
  s.list_heads = ListHeads::kPerKvHead;
  s.query_heads = 32;
  s.kv_heads = 8;
  s.density = 0.3;
  s.holes = 0.2;
  s.empty = 0.3;
  s.sinks = true;
  run(s);
  s = Make("selected per q head", {{4000, 3999, 1}});
  s.list_heads = ListHeads::kPerQHead;
  s.density = 0.3;
  run(s);
  s = Make("four drafts, group 4", {{3001, 2997, 4}, {514, 510, 4}});
  s.query_tile = 4;
  s.query_heads = 8;
  run(s);
  s = Make("group 16, entries 128", {{2500, 2499, 1}});
  s.query_heads = 32;
  s.entry_tokens = 128;
  s.density = 0.5;
  run(s);
  s = Make("group 1", {{2500, 2499, 1}, {300, 299, 1}});
  s.query_heads = 2;
  run(s);
}

// The same rows, bit for bit, whole or cut anywhere.
void CheckCut(bool fp8, int begin, double density, int window, int cut) {
  constexpr int kRows = 701;
  CaseSpec s = Make("prefill cut", {{begin + kRows, begin, kRows}});
  if (!Wanted(s.name)) return;
  s.list_heads = ListHeads::kPerQHead;
  s.density = density;
  s.fp8 = fp8;
  if (fp8) s.dtype = DType::kF16;
  s.edge.window = window;
  AttentionCase whole(s);
  RunPrefill(&whole, PrefillLayout::kPlain);
  const std::vector<uint16_t> all = whole.ReadOut();
  CaseSpec head = s, tail = s;
  head.sequences = {{begin + cut, begin, cut}};
  tail.sequences = {{begin + kRows, begin + cut, kRows - cut}};
  AttentionCase first(head), second(tail);
  RunPrefill(&first, PrefillLayout::kPlain);
  RunPrefill(&second, PrefillLayout::kPlain);
  std::vector<uint16_t> parts = first.ReadOut();
  const std::vector<uint16_t> rest = second.ReadOut();
  parts.insert(parts.end(), rest.begin(), rest.end());
  const bool same = parts == all;
  std::printf("%-4s prefill cut at %d + %d, density %.1f: same bits\n", same ? "ok" : "FAIL", begin,
              cut, density);
  if (!same) ++failures;
}

void CutsDoNotMatter(bool fp8) {
  for (int cut : {1, 100, 128, 300, 577}) {
    CheckCut(fp8, 0, 1.0, 200, cut);
    CheckCut(fp8, 0, 0.4, 0, cut);
  }
  // Across the end of the second segment of a list.
  for (int cut : {100, 300}) CheckCut(fp8, 65300, 1.0, 0, cut);
}

// A prompt's few rows at the end of a long list, alone and among so many others that blocks take
// whole units.
void SharingDoesNotMatter(bool fp8) {
  CaseSpec s = Make("prefill company", {{70000, 69850, 150}});
  if (!Wanted(s.name)) return;
  s.fp8 = fp8;
  if (fp8) s.dtype = DType::kF16;
  AttentionCase alone(s);
  RunPrefill(&alone, PrefillLayout::kPlain);
  CaseSpec many = s;
  for (int i = 0; i < 120; ++i) many.sequences.push_back({40 + i, 20, 20 + i});
  AttentionCase batch(many);
  RunPrefill(&batch, PrefillLayout::kPlain);
  const std::vector<uint16_t> one = alone.ReadOut();
  std::vector<uint16_t> first = batch.ReadOut();
  first.resize(one.size());
  const bool same = one == first;
  std::printf("%-4s prefill alone or among 121: same bits\n", same ? "ok" : "FAIL");
  if (!same) ++failures;
}

// A sequence decodes to the same bits alone and in company.
void CompanyDoesNotMatter(bool fp8) {
  CaseSpec s = Make("decode company", {{5000, 4999, 1}});
  if (!Wanted(s.name)) return;
  s.query_tile = 1;
  s.query_heads = 32;
  s.kv_heads = 8;
  s.fp8 = fp8;
  if (fp8) s.dtype = DType::kF16;
  AttentionCase alone(s);
  RunDecode(&alone);
  CaseSpec many = s;
  for (int i = 0; i < 40; ++i) many.sequences.push_back({100 + 77 * i, 99 + 77 * i, 1});
  AttentionCase batch(many);
  RunDecode(&batch);
  const std::vector<uint16_t> one = alone.ReadOut();
  std::vector<uint16_t> first = batch.ReadOut();
  first.resize(one.size());
  // The two cases draw the same queries for sequence 0 but place its keys differently; the keys
  // themselves are the first that the seed draws.
  const bool same = one == first;
  std::printf("%-4s decode alone or among 41: same bits\n", same ? "ok" : "FAIL");
  if (!same) ++failures;
}

// A visible key without a page is reported and left out; nothing faults.
void MissingPagesAreReported() {
  CaseSpec s = Make("missing page", {{300, 0, 300}});
  if (!Wanted(s.name)) return;
  AttentionCase c(s);
  const int32_t outside[2] = {kNoPage, 1 << 29};
  for (int32_t id : outside) {
    Must(cudaMemcpy(const_cast<int32_t*>(c.params().page_table.pages) + 2, &id, 4,
                    cudaMemcpyHostToDevice),
         "table");
    const AttentionParams& p = c.params();
    Scratch scratch(PrefillScratchBytes(p, PrefillLayout::kPlain));
    Must(LaunchPrefillPlan(p, PrefillLayout::kPlain, scratch.data, nullptr), "plan");
    Must(LaunchPrefill(p, PrefillLayout::kPlain, scratch.data, nullptr, path), "prefill");
    Must(cudaDeviceSynchronize(), "missing page");
    const bool reported = scratch.Status() != 0;
    std::printf("%-4s prefill page id %d reported\n", reported ? "ok" : "FAIL", id);
    if (!reported) ++failures;
  }
}

void CheckPath();

int Main(int argc, char** argv) {
  if (argc > 1) filter = argv[1];
  const std::string only = argc > 2 ? argv[2] : "";
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: skipped\n");
    return 0;
  }
  cudaDeviceProp properties;
  Must(cudaGetDeviceProperties(&properties, 0), "properties");
  const bool has_fast = properties.major == 9 && properties.minor == 0;
  for (const KernelPath each : {KernelPath::kFast, KernelPath::kPortable}) {
    if ((each == KernelPath::kFast && !has_fast) ||
        (!only.empty() && only != KernelPathName(each))) {
      continue;
    }
    path = each;
    std::printf("== %s\n", KernelPathName(path));
    CheckPath();
  }
  std::printf("%s: %d failures\n", failures == 0 ? "PASS" : "FAIL", failures);
  return failures == 0 ? 0 : 1;
}

void CheckPath() {
  const std::vector<int32_t> sizes = path == KernelPath::kFast
                                         ? std::vector<int32_t>{128, 64, 256}
                                         : std::vector<int32_t>{128, 64, 80, 96, 192, 256};
  for (int32_t d : sizes) PrefillShapes(d, DType::kBF16);
  PrefillShapes(128, DType::kF16);
  // One of each way that codes lie in shared memory.
  const std::vector<int32_t> fp8_sizes =
      path == KernelPath::kFast ? sizes : std::vector<int32_t>{128, 64, 80, 192};
  for (int32_t d : fp8_sizes) PrefillShapes(d, DType::kF16, /*fp8=*/true);
  CutsDoNotMatter(/*fp8=*/false);
  CutsDoNotMatter(/*fp8=*/true);
  SharingDoesNotMatter(/*fp8=*/false);
  SharingDoesNotMatter(/*fp8=*/true);
  MissingPagesAreReported();
  for (int32_t d : sizes) DecodeShapes(d, DType::kBF16);
  DecodeShapes(128, DType::kF16);
  for (int32_t d : fp8_sizes) DecodeShapes(d, DType::kF16, /*fp8=*/true);
  CompanyDoesNotMatter(/*fp8=*/false);
  CompanyDoesNotMatter(/*fp8=*/true);
  size_t free_bytes = 0, total = 0;
  Must(cudaMemGetInfo(&free_bytes, &total), "memory");
  if (free_bytes > (size_t{60} << 30)) {  // page ids above 2^20, byte offsets past 2^34
    CaseSpec s = Make("page ids above 2^20", {{500, 0, 500}});
    s.query_heads = 2;
    s.kv_heads = 1;
    s.first_pool_page = (1 << 20) + 77;
    Prefill(s);
    s.sequences = {{5000, 4999, 1}};
    Decode(s);
  }
}

}  // namespace
}  // namespace longstride::kernels::cuda

int main(int argc, char** argv) { return longstride::kernels::cuda::Main(argc, argv); }
