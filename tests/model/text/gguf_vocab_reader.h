// The tokenizer metadata of a GGUF file, read by the plainest possible code: the tests of the text
// layer do not depend on the weights reader. Only for trusted files.
#pragma once

#include <optional>
#include <string>

#include "model/text/gguf_vocab.h"

namespace longstride::model {

// nullopt if the file is not there.
std::optional<GgufVocab> ReadGgufVocab(const std::string& path);

// The chat template in the file; empty if there is none.
std::string ReadGgufChatTemplate(const std::string& path);

}  // namespace longstride::model
