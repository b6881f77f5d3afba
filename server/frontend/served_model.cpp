#include "server/frontend/served_model.h"

#include <openssl/sha.h>

#include "absl/strings/escaping.h"
#include "config/base/strings.h"

namespace longstride::frontend {

std::string ServedModel::Fingerprint() const {
  const std::string text = StrCat(model_digest, "\n", plan_digest, "\n", kv_dtype);
  unsigned char hash[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), hash);
  return "ls-" + absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(hash), 6));
}

}  // namespace longstride::frontend
