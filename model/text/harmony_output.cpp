// gpt-oss: a series of messages, each with a header that names its channel and recipient.
//
//   <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>commentary
//   to=functions.f <|constrain|>json<|message|>{...}<|call|>
#include <algorithm>
#include <utility>

#include "model/text/output_machine.h"

namespace longstride::model {
namespace {

constexpr size_t kLongestHeader = 512;
constexpr std::string_view kMessage = "<|message|>";
constexpr std::string_view kHeaderStarts[] = {"<|start|>", "<|channel|>", "<|message|>",
                                              "<|constrain|>", " to=", "to="};
constexpr std::string_view kBodyEnds[] = {"<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>"};

class HarmonyMachine : public OutputMachine {
 public:
  HarmonyMachine(OutputParserOptions options, PartSink* sink)
      : OutputMachine(sink), options_(std::move(options)) {}

  void Consume(std::string* buffer, bool at_end) override {
    buffer_ = buffer;
    at_end_ = at_end;
    while (Step()) {
    }
  }

 private:
  enum class Mode { kHeader, kText, kCall, kArguments };

  bool Step() {
    switch (mode_) {
      case Mode::kHeader: return Header();
      case Mode::kText: return Text();
      case Mode::kCall: return Call();
      case Mode::kArguments: return Arguments();
    }
    return false;
  }

  bool LooksLikeHeader() const {
    const std::string_view text = *buffer_;
    return std::any_of(std::begin(kHeaderStarts), std::end(kHeaderStarts), [&](std::string_view start) {
      return text.starts_with(start) || (!at_end_ && start.starts_with(text));
    });
  }

  bool Header() {
    if (buffer_->empty()) return false;
    const size_t end = buffer_->find(kMessage);
    const bool looks = LooksLikeHeader();
    const bool broken = end != std::string::npos
                            ? end > kLongestHeader
                            : at_end_ || buffer_->size() > kLongestHeader + kMessage.size();
    if (!looks || broken) {
      // An answer without header, or a broken header, which is not to be taken for the next one.
      kind_ = OutputPart::kContent;
      mode_ = Mode::kText;
      skip_ = looks ? 1 : 0;
      return true;
    }
    if (end == std::string::npos) return false;
    const std::string header = buffer_->substr(0, end);
    raw_ = header + std::string(kMessage);
    buffer_->erase(0, raw_.size());
    sink_.Mark();
    skip_ = 0;
    const std::string recipient = WordAfter(header, "to=");
    if (recipient.starts_with("functions.") && recipient.size() > 10 && options_.parse_tool_calls) {
      tool_ = recipient.substr(10);
      mode_ = Mode::kCall;
      return true;
    }
    const bool thought = WordAfter(header, "<|channel|>") == "analysis" && options_.parse_reasoning;
    kind_ = thought ? OutputPart::kReasoning : OutputPart::kContent;
    mode_ = Mode::kText;
    return true;
  }

  static std::string WordAfter(std::string_view header, std::string_view key) {
    const size_t at = header.find(key);
    if (at == std::string_view::npos) return "";
    const std::string_view rest = header.substr(at + key.size());
    return std::string(rest.substr(0, rest.find_first_of(" \t\n<")));
  }

  bool Text() {
    const std::string_view text = *buffer_;
    auto found = FindMark(text.substr(std::min(skip_, text.size())), kBodyEnds);
    if (found) found->at += skip_;
    const size_t end = found     ? found->at
                       : at_end_ ? text.size()
                                 : text.size() - PartialMark(text.substr(std::min(skip_, text.size())), kBodyEnds);
    sink_.Text(kind_, text.substr(0, end));
    skip_ -= std::min(skip_, end);
    buffer_->erase(0, end);
    if (!found) return false;
    if (found->mark != "<|start|>" && found->mark != "<|channel|>") buffer_->erase(0, found->mark.size());
    sink_.Mark();
    mode_ = Mode::kHeader;
    return true;
  }

  // A body that should be an object of arguments.
  bool Call() {
    const size_t first = LeadingBlanks(*buffer_);
    if (first == buffer_->size() && first <= kMostBlanks && !at_end_) return false;
    const std::string_view rest = std::string_view(*buffer_).substr(first);
    const bool ends = FindMark(rest.substr(0, 16), kBodyEnds).value_or(FoundMark{1, ""}).at == 0;
    if (!ends && !at_end_ && rest.starts_with('<') && PartialMark(rest, kBodyEnds) == rest.size()) return false;
    if (first <= kMostBlanks && (rest.starts_with('{') || ends)) {
      sink_.Call(std::move(tool_), "");
      buffer_->erase(0, first);
      arguments_ = ArgumentsReader();
      mode_ = Mode::kArguments;
      kind_ = OutputPart::kContent;
      if (!ends) return true;
      sink_.Arguments("{}");  // a call without arguments
      mode_ = Mode::kText;
      return true;
    }
    sink_.GiveBack(raw_);
    kind_ = OutputPart::kContent;
    mode_ = Mode::kText;
    return true;
  }

  bool Arguments() {
    const ArgumentsReader::State state = arguments_.Read(buffer_, &sink_);
    if (state == ArgumentsReader::State::kMore) return false;
    if (state == ArgumentsReader::State::kDone) sink_.Mark();
    if (state == ArgumentsReader::State::kBad) sink_.GiveBack("");
    mode_ = Mode::kText;
    return true;
  }

  OutputParserOptions options_;
  std::string* buffer_ = nullptr;  // during Consume
  bool at_end_ = false;
  Mode mode_ = Mode::kHeader;
  OutputPart::Kind kind_ = OutputPart::kContent;
  std::string tool_;
  std::string raw_;  // the header, which comes back if its body is no call
  size_t skip_ = 0;  // bytes in which no mark is looked for
  ArgumentsReader arguments_;
};

}  // namespace

std::unique_ptr<OutputMachine> MakeHarmonyMachine(OutputParserOptions options, PartSink* sink) {
  return std::make_unique<HarmonyMachine>(std::move(options), sink);
}

}  // namespace longstride::model
