#include "model/weights/checkpoint_digest.h"

#include <openssl/evp.h>

#include <algorithm>

#include "config/base/check.h"

namespace longstride::model {

struct CheckpointDigest::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

CheckpointDigest::CheckpointDigest() : state_(std::make_unique<State>()) {
  LS_CHECK_EQ(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr), 1);
}

CheckpointDigest::~CheckpointDigest() = default;

void CheckpointDigest::AddBytes(std::span<const uint8_t> bytes) {
  const uint64_t size = bytes.size();
  LS_CHECK_EQ(EVP_DigestUpdate(state_->context, &size, sizeof(size)), 1);
  LS_CHECK_EQ(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()), 1);
}

void CheckpointDigest::AddText(std::string_view text) {
  AddBytes({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

void CheckpointDigest::AddTensor(std::string_view name, const kernels::TensorView& view) {
  constexpr size_t kSample = 1024;
  constexpr size_t kPlaces = 4;
  AddText(name);
  AddText(kernels::DTypeName(view.dtype));
  AddBytes({reinterpret_cast<const uint8_t*>(view.shape), sizeof(view.shape)});
  const std::span<const uint8_t> bytes(view.ptr<const uint8_t>(),
                                       static_cast<size_t>(view.num_bytes()));
  const size_t sample = std::min(kSample, bytes.size());
  for (size_t place = 0; place < kPlaces; ++place) {
    const size_t start = (bytes.size() - sample) / (kPlaces - 1) * place;
    AddBytes(bytes.subspan(start, sample));
  }
}

std::string CheckpointDigest::Finish() {
  uint8_t hash[EVP_MAX_MD_SIZE] = {};
  LS_CHECK_EQ(EVP_DigestFinal_ex(state_->context, hash, nullptr), 1);
  constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (int i = 0; i < 16; ++i) {
    out += kHex[hash[i] >> 4];
    out += kHex[hash[i] & 15];
  }
  return out;
}

}  // namespace longstride::model
