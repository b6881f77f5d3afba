// The parts of OutputParser. Internal to model/text.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/text/json_scanner.h"
#include "model/text/tool_call_parser.h"

namespace longstride::model {

// Collects parts. Blanks beside marks are dropped; blanks at the end of what is known of a text wait
// until it is clear whether a mark follows.
class PartSink {
 public:
  void Text(OutputPart::Kind kind, std::string_view text);
  // A mark was read. Returns the blanks before it, which are dropped.
  std::string Mark();
  // Text that comes back: as it is, blanks too.
  void GiveBack(std::string_view text);
  void Call(std::string name, std::string id);
  void Arguments(std::string_view text);
  void Finish();

  int num_calls() const { return num_calls_; }
  std::vector<OutputPart> Take();

 private:
  void Add(OutputPart::Kind kind, std::string_view text, int tool = -1);

  std::vector<OutputPart> parts_;
  std::string blanks_;  // that wait
  OutputPart::Kind kind_ = OutputPart::kContent;  // of the text they belong to
  bool after_mark_ = false;
  int num_calls_ = 0;
};

// One format. Takes what it can from the start of `buffer`; all of it if `at_end`.
class OutputMachine {
 public:
  explicit OutputMachine(PartSink* sink) : sink_(*sink) {}
  virtual ~OutputMachine() = default;
  virtual void Consume(std::string* buffer, bool at_end) = 0;

 protected:
  PartSink& sink_;
};

std::unique_ptr<OutputMachine> MakeTaggedMachine(OutputParserOptions options, PartSink* sink);
std::unique_ptr<OutputMachine> MakeHarmonyMachine(OutputParserOptions options, PartSink* sink);

// Arguments of a call that is announced already: one JSON object.
class ArgumentsReader {
 public:
  enum class State { kMore, kDone, kBad };
  // Moves what belongs to the object from `buffer` to `sink`.
  State Read(std::string* buffer, PartSink* sink);

 private:
  JsonScanner scanner_;
};

// --- marks
struct FoundMark {
  size_t at;
  std::string_view mark;
};
// The mark that comes first; of those at one place, the longest.
std::optional<FoundMark> FindMark(std::string_view text, std::span<const std::string_view> marks);
// Longest end of `text` that is the start of a mark.
size_t PartialMark(std::string_view text, std::span<const std::string_view> marks);
size_t LeadingBlanks(std::string_view text);
// Where a call may begin, blanks are counted again with every piece of text; more than these are text.
inline constexpr size_t kMostBlanks = 1024;

}  // namespace longstride::model
