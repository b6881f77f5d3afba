#include "server/frontend/generation.h"

#include <utility>

namespace longstride::frontend {
namespace {

using engine::FinishReason;
using engine::OutputEvent;

void Add(const engine::RequestUsage& usage, engine::RequestUsage* total) {
  total->prompt_tokens += usage.prompt_tokens;
  total->cached_tokens += usage.cached_tokens;
  total->generated_tokens += usage.generated_tokens;
  total->kv_tokens_total += usage.kv_tokens_total;
  total->kv_tokens_attended += usage.kv_tokens_attended;
  total->kv_bytes_peak += usage.kv_bytes_peak;
  total->preemptions += usage.preemptions;
  total->queue_seconds = std::max(total->queue_seconds, usage.queue_seconds);
  total->prefill_seconds = std::max(total->prefill_seconds, usage.prefill_seconds);
  total->decode_seconds = std::max(total->decode_seconds, usage.decode_seconds);
}

class GenerationImpl final : public Generation {
 public:
  GenerationImpl(GenerationInfo info, std::vector<std::unique_ptr<engine::RequestHandle>> handles,
                 const OutputParserFactory& make_parser)
      : info_(std::move(info)), handles_(std::move(handles)), done_(handles_.size(), false) {
    if (make_parser == nullptr) return;
    choices_.resize(handles_.size() * info_.num_choices);
    for (ChoiceState& choice : choices_) choice.parser = make_parser();
  }

  const GenerationInfo& info() const override { return info_; }

  void Cancel() override {
    for (auto& handle : handles_) handle->Cancel(FinishReason::kCancelled);
  }

  bool Drain(std::vector<GenerationEvent>* events) override {
    if (finished_) return false;
    for (std::size_t p = 0; p < handles_.size(); ++p) {
      if (done_[p]) continue;
      scratch_.clear();
      handles_[p]->Drain(&scratch_);
      for (OutputEvent& event : scratch_) Translate(static_cast<int32_t>(p), &event, events);
    }
    if (num_done_ < handles_.size()) return true;
    finished_ = true;
    GenerationEvent last;
    last.kind = GenerationEvent::Kind::kFinished;
    last.status = status_;
    last.usage = usage_;
    events->push_back(std::move(last));
    return false;
  }

 private:
  struct ChoiceState {
    std::unique_ptr<OutputParser> parser;
    bool called_tools = false;
  };

  void Parse(int32_t choice, std::string text, bool last, ParsedText* out) {
    if (choices_.empty()) {
      out->content = std::move(text);
      return;
    }
    ChoiceState& state = choices_[choice];
    if (!text.empty()) state.parser->Push(text, out);
    if (last) state.parser->Finish(out);
    if (!out->tool_calls.empty()) state.called_tools = true;
  }

  void Translate(int32_t prompt, OutputEvent* in, std::vector<GenerationEvent>* events) {
    GenerationEvent out;
    out.prompt = prompt;
    out.choice = prompt * info_.num_choices + in->choice;
    switch (in->kind) {
      case OutputEvent::Kind::kProgress:
        out.kind = GenerationEvent::Kind::kProgress;
        out.processed_tokens = in->processed_tokens;
        out.usage = in->usage;
        break;
      case OutputEvent::Kind::kPromptLogprobs:
        out.kind = GenerationEvent::Kind::kPromptLogprobs;
        out.tokens = std::move(in->tokens);
        break;
      case OutputEvent::Kind::kDelta:
        out.kind = GenerationEvent::Kind::kDelta;
        out.tokens = std::move(in->tokens);
        Parse(out.choice, std::move(in->text), false, &out.text);
        break;
      case OutputEvent::Kind::kChoiceFinished:
        FinishChoice(std::move(out), in, events);
        return;
      case OutputEvent::Kind::kVector:
        out.kind = GenerationEvent::Kind::kVector;
        out.vector = std::move(in->vector);
        break;
      case OutputEvent::Kind::kFinished:
        FinishPrompt(prompt, *in);
        return;
    }
    events->push_back(std::move(out));
  }

  void FinishChoice(GenerationEvent out, OutputEvent* in, std::vector<GenerationEvent>* events) {
    // Cancelled, late and broken requests end by the status of kFinished.
    if (in->reason != FinishReason::kStop && in->reason != FinishReason::kLength) return;
    GenerationEvent rest;
    rest.prompt = out.prompt;
    rest.choice = out.choice;
    Parse(out.choice, std::string(), true, &rest.text);
    if (!rest.text.empty()) events->push_back(std::move(rest));
    out.kind = GenerationEvent::Kind::kChoiceFinished;
    out.finish = in->reason == FinishReason::kLength ? FinishKind::kLength : FinishKind::kStop;
    if (!choices_.empty() && choices_[out.choice].called_tools && out.finish == FinishKind::kStop) {
      out.finish = FinishKind::kToolCalls;
    }
    out.stop_string = std::move(in->stop_string);
    out.stop_token = in->stop_token;
    events->push_back(std::move(out));
  }

  void FinishPrompt(int32_t prompt, const OutputEvent& event) {
    done_[prompt] = true;
    ++num_done_;
    Add(event.usage, &usage_);
    if (!event.status.ok() && status_.ok()) {
      status_ = event.status;
      Cancel();  // one prompt failed: the answer as a whole cannot be given
    }
  }

  const GenerationInfo info_;
  const std::vector<std::unique_ptr<engine::RequestHandle>> handles_;
  std::vector<bool> done_;
  std::vector<ChoiceState> choices_;
  std::vector<OutputEvent> scratch_;
  std::size_t num_done_ = 0;
  bool finished_ = false;
  absl::Status status_;
  engine::RequestUsage usage_;
};

}  // namespace

std::unique_ptr<Generation> MakeGeneration(
    GenerationInfo info, std::vector<std::unique_ptr<engine::RequestHandle>> handles,
    const OutputParserFactory& make_parser) {
  return std::make_unique<GenerationImpl>(std::move(info), std::move(handles), make_parser);
}

}  // namespace longstride::frontend
