// Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) over bytes (GPT-2) or over characters
// with byte fallback (SentencePiece).
#pragma once

#include <array>
#include <bitset>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "model/text/merge_table.h"
#include "model/text/token_model.h"

namespace longstride::model {

struct BpeSpec {
  // Ids of the single bytes (byte-level), or of the byte tokens <0xNN> (byte fallback); -1: none.
  std::array<int32_t, 256> byte_ids;
  bool byte_level = false;
  // Characters that are tokens; only where byte_level is false.
  absl::flat_hash_map<char32_t, int32_t> char_ids;
  MergeTable merges;
  // Pairs of adjacent characters inside tokens that merges make; empty disables cutting. Only where
  // byte_level is false.
  std::vector<std::pair<char32_t, char32_t>> inner_pairs;
  // Whole pieces that are tokens without regard to merges ("ignore_merges").
  absl::flat_hash_map<std::string, int32_t> whole_pieces;
  bool byte_fallback = false;
  bool fuse_unknown = false;
  std::optional<int32_t> unknown_id;
};

// Merges the pair of least rank, leftmost first, until none is left. Time O(n log n) in the piece.
class BpeModel : public TokenModel {
 public:
  explicit BpeModel(BpeSpec spec);

  absl::Status Encode(std::string_view piece, std::vector<int32_t>* ids) const override;
  size_t IndependentPrefix(std::string_view text) const override;

  // The merge loop alone, on symbols; exposed so that it can be tested against a naive one.
  static void Merge(const MergeTable& merges, std::vector<int32_t>* symbols);

 private:
  static constexpr size_t kPairBits = 1 << 20;
  static size_t PairHash(char32_t a, char32_t b) {
    return static_cast<size_t>((static_cast<uint64_t>(a) << 32 | b) * 0x9E3779B97F4A7C15u >> 44);
  }
  void AppendSymbols(std::string_view piece, std::vector<int32_t>* symbols) const;
  int32_t CharId(char32_t c) const;

  BpeSpec spec_;
  std::vector<int32_t> low_chars_;  // char_ids below 0x3000, as an array
  std::unique_ptr<std::bitset<kPairBits>> inner_pairs_;  // null: no cuts
};

}  // namespace longstride::model
