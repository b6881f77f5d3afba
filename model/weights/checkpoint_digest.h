// The 128-bit identity of a checkpoint: what WeightsFile::digest() returns.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kernels/tensor_view.h"

namespace longstride::model {

// SHA-256 over length-prefixed parts, cut to 128 bits. Not thread-safe.
class CheckpointDigest {
 public:
  CheckpointDigest();
  ~CheckpointDigest();
  CheckpointDigest(const CheckpointDigest&) = delete;
  CheckpointDigest& operator=(const CheckpointDigest&) = delete;

  void AddBytes(std::span<const uint8_t> bytes);
  void AddText(std::string_view text);
  // Name, type, shape, and 1 KiB at each of four places of the tensor's bytes.
  void AddTensor(std::string_view name, const kernels::TensorView& view);
  // 32 hexadecimal digits. Call once.
  std::string Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace longstride::model
