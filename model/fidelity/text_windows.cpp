#include "model/fidelity/text_windows.h"

#include <algorithm>
#include <utility>

namespace longstride::model::fidelity {
namespace {

// No tokenizer of a trained model takes more bytes a token over whole windows of text.
constexpr int64_t kMaxBytesPerToken = 32;

// The start of a text, cut between characters.
std::string_view Head(std::string_view text, int64_t bytes) {
  if (static_cast<int64_t>(text.size()) <= bytes) return text;
  auto end = static_cast<size_t>(bytes);
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end);
}

}  // namespace

absl::StatusOr<WindowSet> CutWindows(const Tokenizer& tokenizer,
                                     const std::vector<Document>& documents,
                                     const WindowOptions& options) {
  const int64_t wanted = options.max_tokens / options.window_tokens;
  if (wanted < 2) {
    return absl::InvalidArgumentError(
        StrCat("--max-tokens: ", options.max_tokens, " tokens are fewer than two windows of ",
               options.window_tokens, "; raise it or lower --window-tokens."));
  }
  const std::vector<int32_t> prefix(tokenizer.prefix_ids().begin(), tokenizer.prefix_ids().end());
  const int64_t fresh = options.window_tokens - static_cast<int64_t>(prefix.size());
  if (documents.empty()) {
    return absl::InvalidArgumentError("No data is given; name text files with --data FILE.");
  }
  std::vector<std::vector<int32_t>> ids;
  int64_t longest = 0;
  for (const Document& document : documents) {
    const std::string_view head = Head(document.text, options.max_tokens * kMaxBytesPerToken);
    auto encoded = tokenizer.Encode(head, {.add_special = false});
    if (!encoded.ok()) return Annotate(encoded.status(), StrCat("data file ", document.name));
    ids.push_back(*std::move(encoded));
    longest = std::max(longest, static_cast<int64_t>(ids.back().size()));
  }
  if (longest < fresh) {
    return absl::InvalidArgumentError(
        StrCat("The data is too short: its longest file has ", longest, " tokens, a window takes ",
               options.window_tokens, "; give longer text or lower --window-tokens."));
  }
  WindowSet set;
  set.document_tokens.resize(documents.size());
  for (int64_t round = 0;; ++round) {
    bool any = false;
    for (size_t d = 0; d < ids.size(); ++d) {
      if (static_cast<int64_t>(set.windows.size()) == wanted) return set;
      if (static_cast<int64_t>(ids[d].size()) < (round + 1) * fresh) continue;
      any = true;
      TextWindow window{.document = static_cast<int32_t>(d), .tokens = prefix};
      const auto begin = ids[d].begin() + round * fresh;
      window.tokens.insert(window.tokens.end(), begin, begin + fresh);
      set.windows.push_back(std::move(window));
      set.document_tokens[d] += options.window_tokens;
    }
    if (!any) break;
  }
  if (set.windows.size() < 2) {
    return absl::InvalidArgumentError(
        StrCat("The data gives only one window of ", options.window_tokens,
               " tokens, and an interval needs two or more; give more text or lower "
               "--window-tokens."));
  }
  return set;
}

}  // namespace longstride::model::fidelity
