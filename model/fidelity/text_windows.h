// Real text cut into windows of one length, each computed as a sequence of its own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/base/status.h"
#include "model/text/tokenizer.h"

namespace longstride::model::fidelity {

struct Document {
  std::string name;  // as the report shows it
  std::string text;  // UTF-8
};

struct TextWindow {
  int32_t document = 0;
  std::vector<int32_t> tokens;  // what the model wants in front of a text, then the text
};

struct WindowOptions {
  int32_t window_tokens = 0;
  int64_t max_tokens = 0;  // of all windows together
};

struct WindowSet {
  std::vector<TextWindow> windows;
  std::vector<int64_t> document_tokens;  // that windows were made of; 0: shorter than a window
};

// Consecutive windows from the start of each document, one from each in turn, until the budget is
// spent. INVALID_ARGUMENT: no documents, no document as long as a window, a budget below two
// windows, text that is not UTF-8.
absl::StatusOr<WindowSet> CutWindows(const Tokenizer& tokenizer,
                                     const std::vector<Document>& documents,
                                     const WindowOptions& options);

}  // namespace longstride::model::fidelity
