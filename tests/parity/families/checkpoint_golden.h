// The golden logits of a tiny checkpoint (make_checkpoints.py, make_brute_force.py).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/base/status.h"

namespace longstride::model {

struct GoldenSequence {
  std::vector<int32_t> tokens;
  std::vector<int32_t> positions;          // ascending
  std::vector<std::vector<float>> logits;  // of each position
  double deviation = 0;                    // standard deviation of all of them
  // [layers, query heads, tokens]: bit b says that the query reads block b of 64 keys. Empty where
  // the family selects nothing by its queries.
  std::vector<int32_t> blocks;
  // [layers, tokens, topk]: the tokens that a row reads, ascending, -1 behind them. Empty where the
  // family has no indexer.
  std::vector<int32_t> chosen;
};

// Reads data/<checkpoint>/golden.safetensors.
absl::StatusOr<std::vector<GoldenSequence>> ReadGolden(const std::string& checkpoint);

// The folder of a checkpoint.
std::string CheckpointFolder(const std::string& checkpoint);

}  // namespace longstride::model
