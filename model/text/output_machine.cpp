#include "model/text/output_machine.h"

#include <algorithm>
#include <utility>

namespace longstride::model {
namespace {

bool IsBlank(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

}  // namespace

void PartSink::Add(OutputPart::Kind kind, std::string_view text, int tool) {
  if (text.empty()) return;
  if (!parts_.empty() && parts_.back().kind == kind && parts_.back().tool_index == tool) {
    parts_.back().text += text;
    return;
  }
  OutputPart part;
  part.kind = kind;
  part.text = std::string(text);
  part.tool_index = tool;
  parts_.push_back(std::move(part));
}

void PartSink::Text(OutputPart::Kind kind, std::string_view text) {
  if (after_mark_) text.remove_prefix(LeadingBlanks(text));
  if (text.empty()) return;
  after_mark_ = false;
  if (kind != kind_) blanks_.clear();
  kind_ = kind;
  size_t end = text.size();
  while (end > 0 && IsBlank(text[end - 1])) --end;
  if (end > 0) {
    Add(kind, std::exchange(blanks_, std::string()));
    Add(kind, text.substr(0, end));
  }
  blanks_ += text.substr(end);
}

std::string PartSink::Mark() {
  after_mark_ = true;
  return std::exchange(blanks_, std::string());
}

void PartSink::GiveBack(std::string_view text) {
  kind_ = OutputPart::kContent;
  after_mark_ = false;
  Add(OutputPart::kContent, std::exchange(blanks_, std::string()));
  Add(OutputPart::kContent, text);
}

void PartSink::Call(std::string name, std::string id) {
  OutputPart part;
  part.kind = OutputPart::kToolCall;
  part.tool_index = num_calls_++;
  part.tool_name = std::move(name);
  part.tool_id = std::move(id);
  parts_.push_back(std::move(part));
  Mark();
}

void PartSink::Arguments(std::string_view text) {
  Add(OutputPart::kToolArguments, text, num_calls_ - 1);
}

void PartSink::Finish() { Add(kind_, std::exchange(blanks_, std::string())); }

std::vector<OutputPart> PartSink::Take() { return std::exchange(parts_, {}); }

ArgumentsReader::State ArgumentsReader::Read(std::string* buffer, PartSink* sink) {
  State state = State::kMore;
  size_t i = 0;
  while (i < buffer->size() && state == State::kMore) {
    switch (scanner_.Feed((*buffer)[i])) {
      case JsonScanner::State::kMore: ++i; break;
      case JsonScanner::State::kDone:
        ++i;
        state = State::kDone;
        break;
      default: state = State::kBad;
    }
  }
  sink->Arguments(std::string_view(*buffer).substr(0, i));
  buffer->erase(0, i);
  return state;
}

std::optional<FoundMark> FindMark(std::string_view text, std::span<const std::string_view> marks) {
  std::optional<FoundMark> found;
  for (const std::string_view mark : marks) {
    const size_t at = text.find(mark);
    if (at == std::string_view::npos) continue;
    if (!found || at < found->at || (at == found->at && mark.size() > found->mark.size())) {
      found = FoundMark{at, mark};
    }
  }
  return found;
}

size_t PartialMark(std::string_view text, std::span<const std::string_view> marks) {
  size_t longest = 0;
  for (const std::string_view mark : marks) {
    for (size_t n = std::min(mark.size() - 1, text.size()); n > longest; --n) {
      if (text.ends_with(mark.substr(0, n))) longest = n;
    }
  }
  return longest;
}

size_t LeadingBlanks(std::string_view text) {
  size_t n = 0;
  while (n < text.size() && IsBlank(text[n])) ++n;
  return n;
}

}  // namespace longstride::model
