// Protobuf messages to native requests and back. Included by grpc_*.cpp only.
#pragma once

#include <longstride/v1/inference.pb.h>

#include "config/base/status.h"
#include "server/frontend/api_types.h"
#include "server/frontend/generation.h"
#include "server/frontend/openai_answer.h"

namespace longstride::frontend {

namespace pb = ::longstride::v1;

// A GenerateRequest is a chat or a completion.
struct NativeGenerate {
  bool is_chat = false;
  CompletionRequest completion;
  ChatRequest chat;
};

absl::StatusOr<NativeGenerate> FromProto(const pb::GenerateRequest& request);
absl::StatusOr<ChatRequest> FromProto(const pb::Chat& chat);
EmbedRequest FromProto(const pb::EmbedRequest& request);
ClassifyRequest FromProto(const pb::ClassifyRequest& request);

// Writes answers with the logprobs that were asked for.
class ProtoWriter {
 public:
  // `tokenizer` must outlive the writer.
  ProtoWriter(const model::Tokenizer* tokenizer, bool logprobs)
      : tokenizer_(tokenizer), logprobs_(logprobs) {}

  // False: the event has nothing for the client.
  bool Write(const GenerationInfo& info, GenerationEvent* event, pb::GenerateEvent* out) const;
  void Write(const GenerationInfo& info, CollectedAnswer* answer, pb::GenerateResponse* out) const;

 private:
  void WriteToken(const engine::TokenOutput& token, bool with_logprob, pb::TokenInfo* out) const;
  void WritePromptTokens(const std::vector<engine::TokenOutput>& tokens,
                         pb::PromptLogprobs* out) const;

  const model::Tokenizer* const tokenizer_;
  const bool logprobs_;
};

void ToProto(const ServedModel& model, pb::Model* out);

}  // namespace longstride::frontend
