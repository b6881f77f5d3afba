// One attention call on the GPU, built at random from a description, and its plain float64 answer.
// Only the CUDA runtime is needed, so that the checks run where nothing else is installed.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels/op_params.h"

namespace longstride::kernels::cuda {

struct CaseSequence {
  int32_t kv_len = 1;
  int32_t first_position = 0;  // of the first query row
  int32_t num_rows = 1;
};

struct CaseSpec {
  std::string name;
  int32_t head_dim = 128;
  int32_t query_heads = 4;
  int32_t kv_heads = 2;
  DType dtype = DType::kBF16;  // of queries and outputs, and of the cache unless that is e4m3
  bool fp8 = false;            // an e4m3 cache; dtype is then kF16
  std::vector<CaseSequence> sequences;
  ListHeads list_heads = ListHeads::kShared;
  int32_t entry_tokens = 64;
  int32_t query_tile = 128;
  double density = 1.0;  // chance of a listed entry; the last one is always listed
  double holes = 0.0;    // chance of a kNoEntry before an entry
  double empty = 0.0;    // chance of an empty list
  EdgeRule edge = {};
  float softcap = 0.0f;
  bool sinks = false;
  bool lse = true;
  int32_t pool_pages = 0;       // 0: just enough
  int32_t first_pool_page = 0;  // pages are drawn from [first_pool_page, pool_pages)
  float query_scale = 1.0f;     // larger makes the softmax sharper
  uint64_t seed = 1;
};

// Owns the host and device memory of one call.
class AttentionCase {
 public:
  explicit AttentionCase(const CaseSpec& spec);
  ~AttentionCase();
  AttentionCase(const AttentionCase&) = delete;
  AttentionCase& operator=(const AttentionCase&) = delete;

  const AttentionParams& params() const { return params_; }
  const CaseSpec& spec() const { return spec_; }
  int32_t max_list_pages() const { return max_list_pages_; }
  int32_t num_rows() const { return num_rows_; }

  // Fills out and lse on the device with a pattern that no kernel writes.
  void Poison();
  std::vector<uint16_t> ReadOut() const;
  std::vector<float> ReadLse() const;
  // Compares the device's out and lse with float64. Prints one line; false if anything is off.
  bool Check(double tolerance) const;

 private:
  struct List {
    int64_t begin;
    int32_t count;
  };
  void MakePages();
  void MakeSelection();
  void MakeQueries();
  template <typename T>
  T* Upload(const std::vector<T>& host);
  void ReferenceRow(int32_t tile, int32_t row, int32_t head, std::vector<double>* out,
                    double* lse) const;
  double ToDouble(uint16_t bits) const;
  uint16_t FromFloat(float value) const;
  // Writes element `at` of a page half, and returns what it stands for.
  float StoreKv(std::vector<uint8_t>* page, size_t at, float value, float scale) const;

  CaseSpec spec_;
  std::mt19937_64 rng_;
  AttentionParams params_;
  int32_t num_rows_ = 0;
  int32_t max_list_pages_ = 0;
  std::vector<std::vector<float>> keys_, values_;  // [sequence][position * kv_heads * head_dim]
  std::vector<uint16_t> queries_;
  std::vector<QueryTile> tiles_;
  std::vector<List> lists_;
  std::vector<int32_t> entries_;
  std::vector<EdgeRule> edges_;
  std::vector<float> sinks_;
  std::vector<void*> device_;
};

}  // namespace longstride::kernels::cuda
