#include <iostream>
#include <nlohmann/json.hpp>

#include "model/tokenizer_loading.h"
#include "model/weights/weights_file.h"
#include "server/cli/commands.h"
#include "server/cli/prompt_source.h"
#include "server/cli/to_options.h"

namespace longstride::cli {
namespace {

using nlohmann::json;

std::string Escaped(std::string_view bytes) {
  return json(std::string(bytes)).dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<int> Tokenize(const Invocation& invocation) {
  ASSIGN_OR_RETURN(const model::ModelOptions options, ToModelOptions(invocation.config()));
  ASSIGN_OR_RETURN(const std::string text, ReadPrompt(invocation));
  const auto file = model::WeightsFile::Open(options.path);
  if (!file.ok()) return WithExit(file.status(), kExitModel);
  const auto tokenizer = model::LoadTokenizer(**file);
  if (!tokenizer.ok()) return WithExit(tokenizer.status(), kExitModel);
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   (*tokenizer)
                       ->Encode(text, {.add_special = !invocation.Has("--plain"),
                                       .parse_special = invocation.Has("--special")}));
  if (invocation.Has("--json")) {
    std::cout << json(ids).dump() << "\n";
    return kExitOk;
  }
  for (const int32_t id : ids) {
    ASSIGN_OR_RETURN(const std::string_view bytes, (*tokenizer)->TokenBytes(id));
    const bool special = (*tokenizer)->IsSpecial(id);
    ASSIGN_OR_RETURN(const std::string_view spelled, (*tokenizer)->TokenText(id));
    std::cout << id << '\t' << (special ? std::string(spelled) : Escaped(bytes)) << '\n';
  }
  std::cerr << ids.size() << " tokens\n";
  return kExitOk;
}

}  // namespace

Command TokenizeCommand() {
  return {.name = "tokenize",
          .arguments = "MODEL [TEXT]",
          .summary = "prints the token ids of a text",
          .flags = {{"--file", "FILE", "Read the text from a file; - is standard input."},
                    {"--plain", "", "Leave out what the model puts around a text, such as BOS."},
                    {"--special", "", "Recognise special tokens in the text."},
                    {"--json", "", "Print one JSON array of ids."}},
          .first_is_model = true,
          .max_plain = 1,
          .run = &Tokenize};
}

}  // namespace longstride::cli
