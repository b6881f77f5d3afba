// The unigram language model tokenizer (Kudo 2018, arXiv:1804.10959): the segmentation of highest
// total score.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "model/text/byte_trie.h"
#include "model/text/token_model.h"

namespace longstride::model {

// Time O(n times the longest token).
class UnigramModel : public TokenModel {
 public:
  struct Spec {
    std::vector<std::pair<std::string, double>> pieces;  // the id is the index
    std::optional<int32_t> unknown_id;
    bool byte_fallback = false;
  };
  // InvalidArgument for a piece of more than kMaxSearchedBytes, a score that is not finite, or an
  // unknown id out of range.
  static absl::StatusOr<std::unique_ptr<UnigramModel>> Create(Spec spec);

  absl::Status Encode(std::string_view piece, std::vector<int32_t>* ids) const override;

 private:
  explicit UnigramModel(Spec spec);
  void AppendUnknown(std::string_view text, std::vector<int32_t>* ids) const;

  Spec spec_;
  absl::flat_hash_map<std::string_view, int32_t> by_text_;
  std::array<int32_t, 256> byte_ids_;
  ByteTrie trie_;
  double unknown_score_ = 0;
};

}  // namespace longstride::model
