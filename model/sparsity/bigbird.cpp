// bigbird: blocks of queries read the first `global_blocks`, the last `window_blocks` (their own
// counts) and `random_blocks` of those between. Source: BigBird (arXiv 2007.14062), in the form a
// causal decoder can have: blocks after the query, and global rows that read ahead, are left out.
//
// The random blocks are a pure function of (seed, absolute head, block of queries): 64-bit draws of
// splitmix64, of which those that repeat are drawn again. They are not the draws of any released
// code: the original's depend on numpy's generator and on the length of the text, and the current
// Hugging Face implementation draws nothing when it evaluates.
#include <algorithm>

#include "model/sparsity/block_rows.h"
#include "model/sparsity/patterns.h"

namespace longstride::model {
namespace {

struct Shape {
  int32_t block = 64, window = 3, global = 1, random = 3;
  int64_t seed = 0;
};

// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
uint64_t SplitMix(uint64_t* state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

class BigBird : public BlockRows {
 public:
  BigBird(const Shape& shape, HeadRange heads)
      : BlockRows(shape.block, heads, shape.random > 0), shape_(shape) {}

  std::string Describe() const override {
    return StrCat("bigbird(block=", shape_.block, ",window=", shape_.window,
                  ",global=", shape_.global, ",random=", shape_.random, ",seed=", shape_.seed, ")",
                  HeadsText());
  }

 protected:
  bool Reads(int32_t head, int64_t row, int64_t column) const override {
    if (column < shape_.global || column > row - shape_.window) return true;
    const std::vector<int32_t> random = Random(head, row);
    return std::binary_search(random.begin(), random.end(), static_cast<int32_t>(column));
  }
  void AppendRow(int32_t head, int64_t row, std::vector<int32_t>* columns) const override {
    const int64_t near = NearBegin(row);
    for (int64_t c = 0; c < std::min<int64_t>(shape_.global, near); ++c) {
      columns->push_back(static_cast<int32_t>(c));
    }
    const std::vector<int32_t> random = Random(head, row);
    columns->insert(columns->end(), random.begin(), random.end());
    for (int64_t c = near; c <= row; ++c) columns->push_back(static_cast<int32_t>(c));
  }
  int64_t RowSize(int32_t, int64_t row) const override {
    return std::min<int64_t>(row + 1, int64_t{shape_.global} + shape_.window + shape_.random);
  }

 private:
  int64_t NearBegin(int64_t row) const { return std::max<int64_t>(0, row - shape_.window + 1); }

  // Ascending, all of [global, NearBegin) where these are not more than `random`.
  std::vector<int32_t> Random(int32_t head, int64_t row) const {
    std::vector<int32_t> chosen;
    const int64_t candidates = NearBegin(row) - shape_.global;
    if (candidates <= shape_.random) {
      for (int64_t c = 0; c < candidates; ++c) {
        chosen.push_back(static_cast<int32_t>(shape_.global + c));
      }
      return chosen;
    }
    auto state = static_cast<uint64_t>(shape_.seed);
    state = SplitMix(&state) ^ static_cast<uint64_t>(head);
    state = SplitMix(&state) ^ static_cast<uint64_t>(row);
    while (static_cast<int32_t>(chosen.size()) < shape_.random) {
      const auto c = static_cast<int32_t>(
          shape_.global +
          static_cast<int64_t>(SplitMix(&state) % static_cast<uint64_t>(candidates)));
      const auto at = std::lower_bound(chosen.begin(), chosen.end(), c);
      if (at == chosen.end() || *at != c) chosen.insert(at, c);
    }
    return chosen;
  }

  Shape shape_;
};

}  // namespace

PatternOr MakeBigBird(const PatternPolicy& policy, const PatternContext& context) {
  constexpr int64_t kMaxBlocks = 4096;
  RETURN_IF_ERROR(
      policy.CheckKnown({"block", "window_blocks", "global_blocks", "random_blocks", "seed"}));
  ASSIGN_OR_RETURN(const int32_t block, BlockSize(policy, 64));
  ASSIGN_OR_RETURN(const int64_t window, policy.Int("window_blocks", 3, 1, kMaxBlocks));
  ASSIGN_OR_RETURN(const int64_t global, policy.Int("global_blocks", 1, 0, kMaxBlocks));
  ASSIGN_OR_RETURN(const int64_t random, policy.Int("random_blocks", 3, 0, 256));
  ASSIGN_OR_RETURN(const int64_t seed, policy.Int("seed", 0, 0, int64_t{1} << 53));
  return std::make_unique<BigBird>(
      Shape{block, static_cast<int32_t>(window), static_cast<int32_t>(global),
            static_cast<int32_t>(random), seed},
      context.heads);
}

}  // namespace longstride::model
