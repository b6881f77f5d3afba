#include "kernels/cuda/attention/attention_runner.h"

#include <algorithm>
#include <bit>

#include "kernels/count_keys.h"
#include "kernels/cuda/attention/convert.h"
#include "kernels/cuda/attention/float_attention.h"
#include "kernels/cuda/attention/latent.h"

namespace longstride::kernels::cuda {
namespace {

constexpr size_t kMaxStatusWords = 256;
constexpr size_t kMaxWaitingCounters = 4096;

class PinnedDeleter : public Buffer::Deleter {
 public:
  void Free(void* data, int64_t bytes) override { cudaFreeHost(data); }
};

bool SamePlan(const AttentionParams& a, const AttentionParams& b) {
  return a.selection.tiles == b.selection.tiles && a.selection.entries == b.selection.entries &&
         a.selection.list_begin == b.selection.list_begin &&
         a.selection.list_count == b.selection.list_count &&
         a.selection.num_tiles == b.selection.num_tiles && a.kv_lens == b.kv_lens &&
         a.page_table.pages == b.page_table.pages && a.generated == b.generated &&
         a.q.shape[1] == b.q.shape[1] && a.cache.num_heads == b.cache.num_heads &&
         a.cache.head_dim == b.cache.head_dim && a.cache.dtype == b.cache.dtype &&
         (a.cache.k == a.cache.v) == (b.cache.k == b.cache.v) && a.value_dim == b.value_dim;
}

int32_t MostRows(const KvSelection& s) {
  int32_t most = 1;
  for (int32_t t = 0; t < s.num_tiles; ++t) most = std::max(most, s.tiles[t].num_rows);
  return most;
}

// The lists of generated rows hold all their candidates, also where those of prompts end in padding.
absl::StatusOr<AttentionCounters> CountGenerated(const AttentionParams& p) {
  KvSelection s = p.selection;
  s.entries_padded = false;
  std::vector<QueryTile> tiles;
  std::vector<int32_t> counts;
  for (int32_t h = 0; h < s.num_list_heads; ++h) {
    for (int32_t t = 0; t < s.num_tiles; ++t) {
      const QueryTile& tile = p.selection.tiles[t];
      if (p.generated == nullptr || p.generated[tile.sequence] == 0) continue;
      if (h == 0) tiles.push_back(tile);
      counts.push_back(s.list_count[int64_t{h} * s.num_tiles + t]);
    }
  }
  s.num_tiles = static_cast<int32_t>(tiles.size());
  s.tiles = tiles.data();
  s.list_count = counts.data();
  return CountKeys(s, p.kv_lens, p.q.shape[1]);
}

// A contiguous tensor of 16-bit values of the cache's type, halves where that is e4m3.
TensorView HalfView(void* data, KvDType dtype, const TensorView& like) {
  return TensorView::Contiguous(data, dtype == KvDType::kBF16 ? DType::kBF16 : DType::kF16,
                                like.shape, 3, Device::kCuda);
}

}  // namespace

absl::Status AttentionRunner::Init() {
  void* p = nullptr;
  constexpr int64_t kStatusBytes = kMaxStatusWords * 4;
  constexpr int64_t kBytes = kStatusBytes + kMaxWaitingCounters * sizeof(DeviceCounters);
  RETURN_IF_ERROR(context_.Check(cudaHostAlloc(&p, kBytes, cudaHostAllocDefault),
                                 "allocating pinned memory"));
  host_status_owner_ = Buffer(p, kBytes, Device::kCpu, std::make_shared<PinnedDeleter>());
  host_status_ = static_cast<uint32_t*>(p);
  host_counters_ = reinterpret_cast<DeviceCounters*>(static_cast<char*>(p) + kStatusBytes);
  return absl::OkStatus();
}

void AttentionRunner::BeginStep() {
  num_plans_ = 0;
  num_status_ = 0;
  status_words_.clear();
  device_counters_ = nullptr;
  waiting_counters_.clear();
}

absl::StatusOr<void*> AttentionRunner::StepMemory(int64_t bytes, bool zeroed) {
  ASSIGN_OR_RETURN(void* p, arrays_.Take(bytes));
  if (zeroed) {
    RETURN_IF_ERROR(context_.Check(
        cudaMemsetAsync(p, 0, static_cast<size_t>(bytes), context_.stream()), "Attention"));
  }
  return p;
}

void AttentionRunner::ChooseKernels(const AttentionParams& p, Plan* plan) const {
  if (p.cache.dtype == KvDType::kF32 || p.cache.dtype == KvDType::kQ8) return;
  if ((p.q.strides[0] | p.q.strides[1] | p.out.strides[0] | p.out.strides[1]) % 4 != 0) return;
  AttentionParams half = p;
  half.counters = nullptr;
  half.q = HalfView(p.q.data, p.cache.dtype, p.q);
  half.out = half.q;
  AttentionParams row = half;
  row.selection.query_tile = 1;
  for (const KernelPath path : {KernelPath::kFast, KernelPath::kPortable}) {
    if (path == KernelPath::kFast && context_.path() != path) continue;
    if (DecodeRefusal(row, path) != nullptr) continue;
    for (const PrefillLayout layout : {PrefillLayout::kPacked, PrefillLayout::kPlain}) {
      if (PrefillRefusal(half, layout, path) != nullptr) continue;
      plan->tensor_cores = true;
      plan->path = path;
      plan->layout = layout;
      return;
    }
  }
}

absl::StatusOr<AttentionRunner::Plan*> AttentionRunner::PlanFor(const AttentionParams& p) {
  if (!arrays_.in_step()) BeginStep();
  for (size_t i = 0; i < num_plans_; ++i) {
    if (SamePlan(plans_[i]->key, p)) return plans_[i].get();
  }
  if (num_plans_ == plans_.size()) plans_.push_back(std::make_unique<Plan>());
  Plan* plan = plans_[num_plans_].get();
  *plan = Plan();
  RETURN_IF_ERROR(MakePlan(p, plan));
  ++num_plans_;
  return plan;
}

absl::Status AttentionRunner::MakePlan(const AttentionParams& p, Plan* plan) {
  plan->key = p;
  const KvSelection& s = p.selection;
  const int32_t sequences = p.page_table.num_sequences;
  AttentionParams& d = plan->device;
  d.page_table = p.page_table;
  ASSIGN_OR_RETURN(d.page_table.pages,
                   arrays_.OnDevice(p.page_table.pages, sequences * p.page_table.stride));
  ASSIGN_OR_RETURN(d.kv_lens, arrays_.OnDevice(p.kv_lens, sequences));
  const int64_t lists = int64_t{s.num_list_heads} * s.num_tiles;
  d.selection = s;
  d.selection.query_tile = MostRows(s);
  ASSIGN_OR_RETURN(d.selection.tiles, arrays_.OnDevice(s.tiles, s.num_tiles));
  ASSIGN_OR_RETURN(d.selection.list_begin, arrays_.OnDevice(s.list_begin, lists));
  ASSIGN_OR_RETURN(d.selection.list_count, arrays_.OnDevice(s.list_count, lists));
  if (!s.entries_made) {
    ASSIGN_OR_RETURN(d.selection.entries, arrays_.OnDevice(s.entries, s.num_entries));
  }
  ASSIGN_OR_RETURN(d.selection.edges, arrays_.OnDevice(s.edges, s.num_list_heads));
  ChooseKernels(p, plan);
  const bool padded = s.entries_made && s.entries_padded;
  if (!padded) {
    ASSIGN_OR_RETURN(plan->counters, CountKeys(s, p.kv_lens, p.q.shape[1]));
  } else if (plan->tensor_cores) {
    ASSIGN_OR_RETURN(plan->counters, CountGenerated(p));
  }
  if (plan->tensor_cores) return SplitTiles(p, plan);
  if (padded) RETURN_IF_ERROR(AwaitLengths(&d.selection, plan));
  ASSIGN_OR_RETURN(plan->float_status, StepMemory(sizeof(uint32_t), /*zeroed=*/true));
  status_words_.push_back(plan->float_status);
  return absl::OkStatus();
}

absl::Status AttentionRunner::SplitTiles(const AttentionParams& p, Plan* plan) {
  const KvSelection& s = p.selection;
  std::vector<int32_t> prompt, generated;
  for (int32_t t = 0; t < s.num_tiles; ++t) {
    const bool is_generated = p.generated != nullptr && p.generated[s.tiles[t].sequence] != 0;
    const bool alone = is_generated || s.tiles[t].first_position >= s.single_rows_from;
    (alone ? generated : prompt).push_back(t);
  }
  AttentionParams shape = p;
  shape.counters = nullptr;
  shape.q = shape.out = HalfView(p.q.data, p.cache.dtype, p.q);
  shape.page_table = plan->device.page_table;
  shape.kv_lens = plan->device.kv_lens;
  if (!prompt.empty()) {
    KvSelection& part = plan->prompt.selection;
    part = plan->device.selection;
    if (!generated.empty()) {
      std::vector<QueryTile> tiles;
      std::vector<int64_t> begins;
      std::vector<int32_t> counts;
      for (const int32_t t : prompt) tiles.push_back(s.tiles[t]);
      for (int32_t h = 0; h < s.num_list_heads; ++h) {
        for (const int32_t t : prompt) {
          begins.push_back(s.list_begin[int64_t{h} * s.num_tiles + t]);
          counts.push_back(s.list_count[int64_t{h} * s.num_tiles + t]);
        }
      }
      part.num_tiles = static_cast<int32_t>(tiles.size());
      ASSIGN_OR_RETURN(part.tiles, arrays_.Copy(tiles.data(), part.num_tiles));
      const auto lists = static_cast<int64_t>(begins.size());
      ASSIGN_OR_RETURN(part.list_begin, arrays_.Copy(begins.data(), lists));
      ASSIGN_OR_RETURN(part.list_count, arrays_.Copy(counts.data(), lists));
    }
    const bool padded = s.entries_made && s.entries_padded;
    if (padded) RETURN_IF_ERROR(AwaitLengths(&part, plan));
    shape.selection = part;
    ASSIGN_OR_RETURN(plan->prompt.scratch,
                     StepMemory(PrefillScratchBytes(shape, plan->layout), /*zeroed=*/padded));
    if (padded) {
      plan->padded_shape = shape;
    } else {
      RETURN_IF_ERROR(context_.Check(
          LaunchPrefillPlan(shape, plan->layout, plan->prompt.scratch, context_.stream()),
          "Attention"));
    }
    status_words_.push_back(plan->prompt.scratch);
  }
  return generated.empty() ? absl::OkStatus() : PlanGenerated(p, generated, shape, plan);
}

absl::Status AttentionRunner::PlanGenerated(const AttentionParams& p,
                                            const std::vector<int32_t>& tiles,
                                            AttentionParams shape, Plan* plan) {
  const KvSelection& s = p.selection;
  KvSelection& part = plan->generated.selection;
  part = plan->device.selection;
  part.query_tile = 1;
  int32_t longest = s.max_list_entries;
  if (longest == 0 || static_cast<int32_t>(tiles.size()) < s.num_tiles || MostRows(s) > 1) {
    RETURN_IF_ERROR(UploadRows(p, tiles, &part));
    longest = rows_.longest;
  }  // else the lists are those of single rows as they stand
  shape.selection = part;
  // Sized in powers of two, so that scratch addresses hold for a while.
  const auto pages = static_cast<uint32_t>(
      std::max(1, longest * (s.entry_tokens / kPageTokens)));
  plan->generated.max_list_pages = static_cast<int32_t>(std::bit_ceil(pages));
  ASSIGN_OR_RETURN(plan->generated.scratch,
                   StepMemory(DecodeScratchBytes(shape, plan->generated.max_list_pages), false));
  RETURN_IF_ERROR(context_.Check(LaunchDecodePlan(shape, plan->generated.max_list_pages,
                                                  plan->generated.scratch, context_.stream()),
                                 "Attention"));
  status_words_.push_back(plan->generated.scratch);
  return absl::OkStatus();
}

absl::Status AttentionRunner::UploadRows(const AttentionParams& p,
                                         const std::vector<int32_t>& tiles, KvSelection* part) {
  const KvSelection& s = p.selection;
  rows_.Set(p, tiles);
  part->num_tiles = static_cast<int32_t>(rows_.tiles.size());
  ASSIGN_OR_RETURN(part->tiles, arrays_.Copy(rows_.tiles.data(), part->num_tiles));
  const auto lists = static_cast<int64_t>(rows_.list_begin.size());
  ASSIGN_OR_RETURN(part->list_begin, arrays_.Copy(rows_.list_begin.data(), lists));
  ASSIGN_OR_RETURN(part->list_count, arrays_.Copy(rows_.list_count.data(), lists));
  if (rows_.more.empty()) return absl::OkStatus();
  std::vector<int32_t> entries(s.entries, s.entries + s.num_entries);
  entries.insert(entries.end(), rows_.more.begin(), rows_.more.end());
  part->num_entries = static_cast<int64_t>(entries.size());
  ASSIGN_OR_RETURN(part->entries, arrays_.Copy(entries.data(), part->num_entries));
  return absl::OkStatus();
}

absl::Status AttentionRunner::AwaitLengths(KvSelection* selection, Plan* plan) {
  const int64_t lists = int64_t{selection->num_list_heads} * selection->num_tiles;
  ASSIGN_OR_RETURN(void* lengths, StepMemory(lists * 4, /*zeroed=*/false));
  plan->padded = *selection;
  plan->lengths = static_cast<int32_t*>(lengths);
  selection->list_count = plan->lengths;
  return absl::OkStatus();
}

absl::Status AttentionRunner::MeasureLists(const AttentionParams& p, const Plan& plan) {
  DeviceCounters* counters = nullptr;
  if (p.counters != nullptr) {
    if (device_counters_ == nullptr) {
      ASSIGN_OR_RETURN(void* memory,
                       StepMemory(kMaxWaitingCounters * sizeof(DeviceCounters), /*zeroed=*/true));
      device_counters_ = static_cast<DeviceCounters*>(memory);
    }
    if (waiting_counters_.size() == kMaxWaitingCounters) {
      return absl::InternalError(StrCat("Attention: expected at most ", kMaxWaitingCounters,
                                        " calls with padded lists in a step"));
    }
    counters = device_counters_ + waiting_counters_.size();
    waiting_counters_.push_back(p.counters);
  }
  RETURN_IF_ERROR(context_.Check(
      LaunchTrimLists(plan.padded, static_cast<int32_t>(p.q.shape[1]), plan.lengths, counters,
                      context_.stream()),
      "Attention"));
  if (!plan.tensor_cores) return absl::OkStatus();
  return context_.Check(LaunchPrefillPlan(plan.padded_shape, plan.layout, plan.prompt.scratch,
                                          context_.stream(), /*again=*/true),
                        "Attention");
}

absl::Status AttentionRunner::RunTensorCores(const AttentionParams& p, const Plan& plan) {
  if (IsLatent(p) && !LatentFits()) {
    return absl::UnimplementedError(
        "Latent attention of 576 channels takes a GPU with 155 KB of shared memory for a block, "
        "such as an A100 or H100; use --device cpu.");
  }
  Scratch scratch(context_);
  ASSIGN_OR_RETURN(uint16_t * q, scratch.Take<uint16_t>(p.q.num_elements()));
  AttentionParams half = p;
  half.counters = nullptr;
  half.q = HalfView(q, p.cache.dtype, p.q);
  half.page_table = plan.device.page_table;
  half.kv_lens = plan.device.kv_lens;
  const cudaStream_t stream = context_.stream();
  RETURN_IF_ERROR(context_.Check(LaunchToHalf(p.q, half.q, stream), "Attention"));
  if (plan.generated.scratch != nullptr) {
    half.selection = plan.generated.selection;
    RETURN_IF_ERROR(context_.Check(LaunchDecode(half, plan.generated.max_list_pages,
                                                plan.generated.scratch, stream, plan.path),
                                   "Attention"));
  }
  if (plan.prompt.scratch == nullptr) return absl::OkStatus();
  half.selection = plan.prompt.selection;
  const bool converts = p.out.dtype != half.q.dtype;
  if (converts) {
    ASSIGN_OR_RETURN(uint16_t * out, scratch.Take<uint16_t>(p.q.num_elements()));
    half.out = HalfView(out, p.cache.dtype, p.q);
  }
  RETURN_IF_ERROR(context_.Check(
      LaunchPrefill(half, plan.layout, plan.prompt.scratch, stream, plan.path), "Attention"));
  if (!converts) return absl::OkStatus();
  return context_.Check(LaunchCoveredRows(half.out, half.selection, p.out, stream), "Attention");
}

absl::Status AttentionRunner::RunFloat(const AttentionParams& p, const Plan& plan) {
  if (p.cache.head_dim > kMaxFloatHeadDim) {
    return absl::UnimplementedError(StrCat("The CUDA backend takes heads of up to ",
                                           kMaxFloatHeadDim, " channels, got ",
                                           p.cache.head_dim, "; use --device cpu."));
  }
  AttentionParams device = p;
  device.page_table = plan.device.page_table;
  device.kv_lens = plan.device.kv_lens;
  device.selection = plan.device.selection;
  // A bound that holds while the page table keeps its size, so that the launch can be replayed.
  const int64_t bound = p.page_table.stride * kPageTokens;
  FloatAttentionLaunch launch{.max_kv_len = static_cast<int32_t>(std::min<int64_t>(bound, INT32_MAX)),
                        .multiprocessors = context_.multiprocessors(),
                        .status = static_cast<uint32_t*>(plan.float_status)};
  Scratch scratch(context_);
  const bool converts = p.out.dtype != DType::kF32;
  if (converts) {
    ASSIGN_OR_RETURN(float* out, scratch.Take<float>(p.q.num_elements()));
    device.out = TensorView::Contiguous(out, DType::kF32, p.out.shape, 3, Device::kCuda);
  }
  ASSIGN_OR_RETURN(launch.scratch, scratch.Take<char>(FloatAttentionScratchBytes(device, launch)));
  RETURN_IF_ERROR(
      context_.Check(LaunchFloatAttention(device, launch, context_.stream()), "Attention"));
  if (!converts) return absl::OkStatus();
  return context_.Check(
      LaunchCoveredRows(device.out, plan.device.selection, p.out, context_.stream()), "Attention");
}

absl::Status AttentionRunner::Run(const AttentionParams& p) {
  if (p.selection.num_tiles == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Plan* plan, PlanFor(p));
  if (plan->lengths != nullptr) RETURN_IF_ERROR(MeasureLists(p, *plan));
  RETURN_IF_ERROR(plan->tensor_cores ? RunTensorCores(p, *plan) : RunFloat(p, *plan));
  if (p.counters != nullptr) {
    p.counters->keys_visible += plan->counters.keys_visible;
    p.counters->keys_read += plan->counters.keys_read;
  }
  if (arrays_.in_step()) return absl::OkStatus();
  RETURN_IF_ERROR(QueueStatus());
  RETURN_IF_ERROR(context_.Synchronize());
  return EndStep();
}

absl::Status AttentionRunner::QueueStatus() {
  num_status_ = std::min(status_words_.size(), kMaxStatusWords);
  for (size_t i = 0; i < num_status_; ++i) {
    RETURN_IF_ERROR(context_.Check(
        cudaMemcpyAsync(host_status_ + i, status_words_[i], sizeof(uint32_t),
                        cudaMemcpyDeviceToHost, context_.stream()),
        "Attention"));
  }
  if (waiting_counters_.empty()) return absl::OkStatus();
  return context_.Check(
      cudaMemcpyAsync(host_counters_, device_counters_,
                      waiting_counters_.size() * sizeof(DeviceCounters), cudaMemcpyDeviceToHost,
                      context_.stream()),
      "Attention");
}

absl::Status AttentionRunner::EndStep() {
  for (size_t i = 0; i < waiting_counters_.size(); ++i) {
    waiting_counters_[i]->keys_visible += static_cast<int64_t>(host_counters_[i].keys_visible);
    waiting_counters_[i]->keys_read += static_cast<int64_t>(host_counters_[i].keys_read);
  }
  waiting_counters_.clear();
  for (size_t i = 0; i < num_status_; ++i) {
    if (host_status_[i] != 0) {
      return absl::InternalError("Attention: a visible position has no page in the cache");
    }
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cuda
