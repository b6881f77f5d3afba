// Fetches a checkpoint's tensors by name, checks their shapes and notes which were used.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "config/base/status.h"
#include "kernels/tensor_view.h"
#include "model/model_spec.h"
#include "model/weights/weights_file.h"

namespace longstride::model {

// Rows and columns of a weight that share a scale, where an fp8 checkpoint has scales for blocks.
inline constexpr int64_t kFp8Block = 128;

// Errors: INVALID_ARGUMENT names a missing or misshapen tensor, UNIMPLEMENTED a type that is not
// computed with. Memory of converted tensors goes to the spec.
class WeightBinder {
 public:
  WeightBinder(const WeightsFile& file, ModelSpec* spec) : file_(file), spec_(spec) {}

  bool Has(std::string_view name) const { return file_.Has(name); }

  // A weight matrix [rows, cols]: in place, or as fp8_128 blocks where it is e4m3 with the scales
  // "<name>_scale" or "<name>_scale_inv", which its codes are multiplied with: one for all, one for
  // each row or one for each block of 128 x 128 (decoded to bf16 where rows are not whole blocks).
  // INVALID_ARGUMENT: a code is not a number. UNIMPLEMENTED: activations of a static scale.
  absl::StatusOr<kernels::TensorView> Matrix(std::string_view name, int64_t rows, int64_t cols);
  // [count, rows, cols] in place, as `count` matrices.
  absl::StatusOr<std::vector<kernels::TensorView>> Matrices(std::string_view name, int64_t count,
                                                            int64_t rows, int64_t cols);
  // The same from a file that stores [count, cols, rows]: transposed copies.
  absl::StatusOr<std::vector<kernels::TensorView>> TransposedMatrices(std::string_view name,
                                                                      int64_t count, int64_t rows,
                                                                      int64_t cols);
  // A vector of n elements as float32, copied: a handful of small tensors would otherwise keep the
  // file's pages around them resident.
  absl::StatusOr<kernels::TensorView> Vector(std::string_view name, int64_t n);
  // A small matrix as float32, copied.
  absl::StatusOr<kernels::TensorView> SmallMatrix(std::string_view name, int64_t rows,
                                                  int64_t cols);
  // A number: a tensor of one element.
  absl::StatusOr<float> Scalar(std::string_view name);
  // A tensor of exactly this type and shape, in place.
  absl::StatusOr<kernels::TensorView> Raw(std::string_view name, kernels::DType dtype,
                                          const std::vector<int64_t>& shape);

  // Zero-initialised memory that the spec owns.
  float* NewFloats(size_t count);
  uint8_t* NewBytes(size_t count);

  // Counts a tensor as used without reading it (a tied head that the file stores all the same).
  void MarkUsed(std::string_view name) { used_.insert(std::string(name)); }
  // UNIMPLEMENTED if the file has tensors that nobody asked for, but for names that start with one
  // of `ignored_prefixes` or end with one of `ignored_suffixes`: an unknown tensor means a function
  // that this family does not compute. Those of modules are LoadModelSpec's business.
  absl::Status CheckAllUsed(const std::vector<std::string_view>& ignored_prefixes,
                            const std::vector<std::string_view>& ignored_suffixes) const;

 private:
  absl::StatusOr<kernels::TensorView> Checked(std::string_view name,
                                              const std::vector<int64_t>& shape);
  absl::StatusOr<kernels::TensorView> BindFp8(const kernels::TensorView& codes,
                                              std::string_view name);
  absl::StatusOr<kernels::TensorView> CopyAsFloat(const kernels::TensorView& view,
                                                  std::string_view name);

  const WeightsFile& file_;
  ModelSpec* spec_;
  std::set<std::string, std::less<>> used_;
};

// Rows [begin, begin + count) of a matrix. REQUIRES: a contiguous rank-2 view.
kernels::TensorView RowRange(const kernels::TensorView& matrix, int64_t begin, int64_t count);

}  // namespace longstride::model
