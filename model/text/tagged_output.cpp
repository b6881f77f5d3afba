// The formats whose calls stand behind a mark, and Llama's, where a whole message is a call.
#include <algorithm>
#include <utility>

#include "model/text/json_call_reader.h"
#include "model/text/output_machine.h"
#include "model/text/pythonic_call.h"

namespace longstride::model {
namespace {

constexpr size_t kLongestName = 512;

class TaggedMachine : public OutputMachine {
 public:
  TaggedMachine(OutputParserOptions options, PartSink* sink)
      : OutputMachine(sink), options_(std::move(options)) {
    const OutputSyntax& syntax = options_.syntax;
    if (options_.parse_reasoning && !syntax.think_open.empty()) {
      reasoning_marks_ = {syntax.think_close};
      content_marks_ = {syntax.think_open, syntax.think_close};
    }
    if (options_.parse_tool_calls) {
      switch (syntax.format) {
        case OutputFormat::kHermes: call_marks_ = {"<tool_call>"}; break;
        case OutputFormat::kMistral: call_marks_ = {"[TOOL_CALLS]"}; break;
        case OutputFormat::kCohere: call_marks_ = {"<|START_ACTION|>"}; break;
        case OutputFormat::kLlama: call_marks_ = {"<|python_tag|>", "<|python_start|>"}; break;
        default: break;
      }
      content_marks_.insert(content_marks_.end(), call_marks_.begin(), call_marks_.end());
    }
    if (syntax.format == OutputFormat::kCohere) {  // what is around plain answers
      for (const char* mark :
           {"<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"}) {
        content_marks_.push_back(mark);
      }
    }
    if (options_.starts_in_reasoning && !reasoning_marks_.empty()) {
      mode_ = Mode::kReasoning;
      sink_.Mark();
    }
  }

  void Consume(std::string* buffer, bool at_end) override {
    buffer_ = buffer;
    at_end_ = at_end;
    while (Step()) {
    }
  }

 private:
  enum class Mode { kContent, kReasoning, kCallStart, kJson, kArguments, kTail };

  // Each returns whether another step can be made now.
  bool Step() {
    switch (mode_) {
      case Mode::kContent: return Content();
      case Mode::kReasoning: return Reasoning();
      case Mode::kCallStart: return CallStart();
      case Mode::kJson: return Json();
      case Mode::kArguments: return Arguments();
      case Mode::kTail: return Tail();
    }
    return false;
  }

  void Drop(size_t bytes) { buffer_->erase(0, bytes); }
  // Moves the start of the buffer to what comes back if this is no call.
  void Keep(size_t bytes) {
    raw_.append(*buffer_, 0, bytes);
    Drop(bytes);
  }
  bool IsList() const {
    return options_.syntax.format == OutputFormat::kMistral ||
           options_.syntax.format == OutputFormat::kCohere;
  }
  bool IsLlama() const { return options_.syntax.format == OutputFormat::kLlama; }

  // Text up to a mark; returns the mark.
  std::optional<std::string_view> TextUpTo(OutputPart::Kind kind,
                                           const std::vector<std::string_view>& marks) {
    const auto found = FindMark(*buffer_, marks);
    const size_t end = found     ? found->at
                       : at_end_ ? buffer_->size()
                                 : buffer_->size() - PartialMark(*buffer_, marks);
    const std::string_view text = std::string_view(*buffer_).substr(0, end);
    if (LeadingBlanks(text) < text.size()) fresh_ = false;
    sink_.Text(kind, text);
    Drop(end);
    return found ? std::optional(found->mark) : std::nullopt;
  }

  bool Content() {
    if (fresh_ && IsLlama() && options_.parse_tool_calls) {
      const size_t first = LeadingBlanks(*buffer_);
      if (first == buffer_->size() && first <= kMostBlanks && !at_end_) return false;
      if (first > kMostBlanks) {
        fresh_ = false;
      } else if (first < buffer_->size() && ((*buffer_)[first] == '{' || (*buffer_)[first] == '[')) {
        marked_ = false;
        fresh_ = false;
        mode_ = Mode::kCallStart;
        return true;
      }
    }
    const auto mark = TextUpTo(OutputPart::kContent, content_marks_);
    if (!mark) return false;
    std::string blanks = sink_.Mark();
    if (std::find(call_marks_.begin(), call_marks_.end(), *mark) != call_marks_.end()) {
      raw_ = std::move(blanks);
      Keep(mark->size());
      marked_ = true;
      in_list_ = false;
      mode_ = Mode::kCallStart;
      return true;
    }
    Drop(mark->size());
    if (*mark == options_.syntax.think_open) mode_ = Mode::kReasoning;
    return true;
  }

  bool Reasoning() {
    const auto mark = TextUpTo(OutputPart::kReasoning, reasoning_marks_);
    if (!mark) return false;
    Drop(mark->size());
    sink_.Mark();
    fresh_ = true;  // the answer begins
    mode_ = Mode::kContent;
    return true;
  }

  bool NoCall() {
    sink_.GiveBack(std::exchange(raw_, std::string()));
    reader_.reset();
    fresh_ = false;
    in_list_ = false;
    mode_ = Mode::kContent;
    return true;
  }

  bool CallStart() {
    Keep(LeadingBlanks(*buffer_));
    if (buffer_->empty()) return at_end_ ? NoCall() : false;
    const char c = (*buffer_)[0];
    if (IsLlama() && (in_list_ || c == '[')) return Pythonic();
    if (IsList() && !in_list_ && c == '[') {
      in_list_ = true;
      Keep(1);
      return true;
    }
    if (c == '{') {
      reader_ = std::make_unique<JsonCallReader>();
      announced_ = false;
      mode_ = Mode::kJson;
      return true;
    }
    if (options_.syntax.format == OutputFormat::kMistral && !in_list_) return Named();
    return NoCall();
  }

  bool IsOffered(const std::string& name) const {
    return marked_ || options_.tool_names.empty() ||
           std::find(options_.tool_names.begin(), options_.tool_names.end(), name) !=
               options_.tool_names.end();
  }

  // A call as an object. What is read moves to raw_ until the call can be announced.
  bool Json() {
    auto state = JsonCallReader::State::kMore;
    size_t i = 0;
    while (i < buffer_->size() && state == JsonCallReader::State::kMore) {
      state = reader_->Feed((*buffer_)[i]);
      if (state != JsonCallReader::State::kBad) ++i;
      if (!reader_->name().has_value()) continue;
      if (!IsOffered(*reader_->name())) {
        state = JsonCallReader::State::kBad;
      } else if (!announced_ && reader_->has_arguments()) {
        // At once, however the text is cut: an id behind the arguments comes too late to be told.
        sink_.Call(*reader_->name(), reader_->id());
        announced_ = true;
      }
    }
    Keep(i);
    if (announced_) {
      sink_.Arguments(reader_->TakeArguments());
      raw_.clear();
    }
    if (state == JsonCallReader::State::kDone) return EndOfCall();
    if (state == JsonCallReader::State::kBad) return NoCall();
    return at_end_ ? NoCall() : false;
  }

  // Mistral: name[ARGS]{...}, maybe with [CALL_ID]id before [ARGS].
  bool Named() {
    static constexpr std::string_view kArgs = "[ARGS]", kCallId = "[CALL_ID]";
    const size_t at = buffer_->find(kArgs);
    if (at == std::string::npos && !at_end_ && buffer_->size() < kLongestName + kArgs.size()) {
      return false;
    }
    if (at == std::string::npos || at > kLongestName) return NoCall();
    const size_t blanks = LeadingBlanks(std::string_view(*buffer_).substr(at + kArgs.size()));
    const size_t body = at + kArgs.size() + blanks;
    if (blanks > kMostBlanks) return NoCall();
    if (body == buffer_->size() && !at_end_) return false;
    std::string name = buffer_->substr(0, at), id;
    if (const size_t mark = name.find(kCallId); mark != std::string::npos) {
      id = name.substr(mark + kCallId.size());
      name.erase(mark);
    }
    const bool good = !name.empty() && name.find_first_of(" \n\t{}[]\"") == std::string::npos;
    if (!good || body == buffer_->size() || (*buffer_)[body] != '{') return NoCall();
    sink_.Call(std::move(name), std::move(id));
    raw_.clear();
    Drop(body);
    arguments_ = ArgumentsReader();
    mode_ = Mode::kArguments;
    return true;
  }

  bool Arguments() {
    switch (arguments_.Read(buffer_, &sink_)) {
      case ArgumentsReader::State::kDone: return EndOfCall();
      case ArgumentsReader::State::kBad: return NoCall();
      case ArgumentsReader::State::kMore: return false;
    }
    return false;
  }

  // Llama: [f(a=1), g()]
  bool Pythonic() {
    // A call ends with ')': a long one is read again only when there is a new one, and only after it
    // has grown by a part of its length, so that reading takes linear time.
    const bool grown = buffer_->size() >= tried_ + tried_ / 8;
    const bool try_now = at_end_ || buffer_->size() < 4096 ||
                         (grown && buffer_->find(')', tried_) != std::string::npos);
    if (!try_now) return false;
    const size_t open = in_list_ ? 0 : 1;
    const size_t at = open + LeadingBlanks(std::string_view(*buffer_).substr(open));
    PythonicCall call = ReadPythonicCall(std::string_view(*buffer_).substr(at));
    tried_ = buffer_->size();
    if (call.kind == PythonicCall::kMore && !at_end_) return false;
    tried_ = 0;
    if (call.kind != PythonicCall::kCall || !IsOffered(call.name)) return NoCall();
    in_list_ = true;
    sink_.Call(std::move(call.name), "");
    sink_.Arguments(call.arguments_json);
    raw_.clear();
    Drop(at + call.size);
    return EndOfCall();
  }

  bool EndOfCall() {
    reader_.reset();
    raw_.clear();
    sink_.Mark();
    mode_ = Mode::kTail;
    return true;
  }

  // Behind a call: a separator and another one, or the closing mark, or content again.
  bool Tail() {
    Drop(LeadingBlanks(*buffer_));
    if (buffer_->empty()) return false;
    const char c = (*buffer_)[0];
    if (in_list_ && c == ']') {
      in_list_ = false;
      Drop(1);
      return true;
    }
    if ((in_list_ && c == ',') || (IsLlama() && !in_list_ && c == ';')) {
      Keep(1);
      mode_ = Mode::kCallStart;
      return true;
    }
    const std::string_view close = options_.syntax.format == OutputFormat::kHermes   ? "</tool_call>"
                                   : options_.syntax.format == OutputFormat::kCohere ? "<|END_ACTION|>"
                                   : IsLlama()                                       ? "<|python_end|>"
                                                                                     : "";
    const bool closes = !close.empty() && buffer_->starts_with(close);
    if (!closes && !at_end_ && close.starts_with(*buffer_)) return false;
    if (closes) Drop(close.size());
    in_list_ = false;
    mode_ = Mode::kContent;
    return true;
  }

  OutputParserOptions options_;
  std::vector<std::string_view> content_marks_, reasoning_marks_, call_marks_;
  std::string* buffer_ = nullptr;  // during Consume
  bool at_end_ = false;
  Mode mode_ = Mode::kContent;
  bool fresh_ = true;       // nothing but blanks of the message is there yet
  bool marked_ = false;     // the call stands behind a mark
  bool in_list_ = false;    // inside [ ]
  bool announced_ = false;  // the call's name is out
  std::string raw_;         // read, but comes back if it is no call
  std::unique_ptr<JsonCallReader> reader_;
  ArgumentsReader arguments_;
  size_t tried_ = 0;
};

}  // namespace

std::unique_ptr<OutputMachine> MakeTaggedMachine(OutputParserOptions options, PartSink* sink) {
  return std::make_unique<TaggedMachine>(std::move(options), sink);
}

}  // namespace longstride::model
