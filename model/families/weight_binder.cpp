#include "model/families/weight_binder.h"

#include <algorithm>
#include <cstring>

#include "kernels/quant.h"

namespace longstride::model {
namespace {

using kernels::DType;
using kernels::TensorView;

std::string ShapeText(const int64_t* dims, size_t rank) {
  std::string out = "[";
  for (size_t d = 0; d < rank; ++d) StrAppend(&out, d == 0 ? "" : ", ", dims[d]);
  return out + "]";
}

// Types that a matrix product accepts.
bool IsMatrixType(DType dtype) {
  return kernels::IsQuantized(dtype) || dtype == DType::kF32 || dtype == DType::kF16 ||
         dtype == DType::kBF16;
}

absl::Status RefuseType(std::string_view name, DType dtype) {
  return absl::UnimplementedError(StrCat("tensor \"", name, "\" has type ",
                                         kernels::DTypeName(dtype),
                                         ", with which this weight is not computed"));
}

// Scales of a weight's codes: `grid_rows` x `grid_cols` of them, each for `block_rows` x
// `block_cols` codes.
struct ScaleGrid {
  int64_t grid_rows = 0, grid_cols = 0, block_rows = 0, block_cols = 0;
};

// By the scales' shape; a grid of 0 rows where it fits none.
ScaleGrid GridOf(const TensorView& scales, int64_t rows, int64_t cols) {
  const int64_t count = scales.num_elements();
  if (count == 1) return {1, 1, rows, cols};
  const int64_t of_row = scales.rank == 2 ? scales.shape[1] : 1;
  if (scales.rank <= 2 && scales.shape[0] == rows && of_row == 1) return {rows, 1, 1, cols};
  const int64_t grid_rows = (rows + kFp8Block - 1) / kFp8Block;
  const int64_t grid_cols = (cols + kFp8Block - 1) / kFp8Block;
  if (scales.rank == 2 && scales.shape[0] == grid_rows && of_row == grid_cols) {
    return {grid_rows, grid_cols, kFp8Block, kFp8Block};
  }
  return {};
}

}  // namespace

absl::StatusOr<TensorView> WeightBinder::Checked(std::string_view name,
                                                 const std::vector<int64_t>& shape) {
  const absl::StatusOr<TensorView> view = file_.Tensor(name);
  if (absl::IsNotFound(view.status())) {
    return absl::InvalidArgumentError(
        StrCat("the checkpoint has no tensor \"", name, "\", which its architecture needs"));
  }
  RETURN_IF_ERROR(view.status());
  if (!std::equal(shape.begin(), shape.end(), view->shape, view->shape + view->rank)) {
    return absl::InvalidArgumentError(StrCat(
        "tensor \"", name, "\" has shape ", ShapeText(view->shape, static_cast<size_t>(view->rank)),
        "; the checkpoint's configuration needs ", ShapeText(shape.data(), shape.size())));
  }
  if (used_.insert(std::string(name)).second) spec_->num_parameters += view->num_elements();
  return *view;
}

absl::StatusOr<TensorView> WeightBinder::Matrix(std::string_view name, int64_t rows, int64_t cols) {
  ASSIGN_OR_RETURN(const TensorView view, Checked(name, {rows, cols}));
  if (view.dtype == DType::kF8E4M3) return BindFp8(view, name);
  if (!IsMatrixType(view.dtype)) return RefuseType(name, view.dtype);
  return view;
}

absl::StatusOr<TensorView> WeightBinder::BindFp8(const TensorView& codes, std::string_view name) {
  const int64_t rows = codes.shape[0], cols = codes.shape[1];
  const std::string module(name.substr(0, name.find_last_of('.')));
  if (Has(module + ".input_scale")) {
    return absl::UnimplementedError(
        StrCat("tensor \"", module,
               ".input_scale\" is a static scale of activations, which is not "
               "applied; use a checkpoint with dynamic ones"));
  }
  std::string scale_name = StrCat(name, "_scale");
  if (!Has(scale_name)) scale_name = StrCat(name, "_scale_inv");
  const absl::StatusOr<TensorView> found = file_.Tensor(scale_name);
  if (!found.ok()) {
    return absl::InvalidArgumentError(
        StrCat("tensor \"", name, "\" is f8e4m3, but the checkpoint has no scales for it (\"", name,
               "_scale\" or \"", scale_name, "\")"));
  }
  const TensorView& view = *found;
  const ScaleGrid grid = GridOf(view, rows, cols);
  if (grid.grid_rows == 0) {
    return absl::InvalidArgumentError(StrCat("tensor \"", scale_name, "\" has shape ",
                                             ShapeText(view.shape, static_cast<size_t>(view.rank)),
                                             "; needed is one scale, one for each of ", rows,
                                             " rows, or one for each block of ", kFp8Block, " x ",
                                             kFp8Block));
  }
  if (view.dtype != DType::kF32 && view.dtype != DType::kF16 && view.dtype != DType::kBF16) {
    return RefuseType(scale_name, view.dtype);
  }
  used_.insert(scale_name);
  std::vector<float> scales(static_cast<size_t>(view.num_elements()));
  kernels::DequantizeRow(view.dtype, view.data, view.num_elements(), scales.data());
  const auto scale_at = [&](int64_t row, int64_t col) {
    return scales[static_cast<size_t>(row / grid.block_rows * grid.grid_cols +
                                      col / grid.block_cols)];
  };
  const auto* in = codes.ptr<const uint8_t>();
  if (std::any_of(in, in + rows * cols, [](uint8_t code) { return (code & 0x7f) == 0x7f; })) {
    return absl::InvalidArgumentError(StrCat(
        "tensor \"", name, "\" holds values that are not numbers; the checkpoint is damaged"));
  }
  spec_->weights_type = "fp8";
  constexpr DType kBlocks = DType::kFP8_128;
  constexpr int64_t kColumns = kernels::BlockElements(kBlocks);
  const bool whole = cols % kColumns == 0;
  const int64_t row_bytes = whole ? kernels::RowBytes(kBlocks, cols) : 2 * cols;
  auto* out = reinterpret_cast<uint8_t*>(NewBytes(static_cast<size_t>(rows * row_bytes)));
  TensorView decoded = TensorView::Matrix(out, whole ? kBlocks : DType::kBF16, rows, cols);
  for (int64_t r = 0; r < rows; ++r, in += cols, out += row_bytes) {
    for (int64_t c = 0; whole && c < cols; c += kColumns) {
      uint8_t* block = out + c / kColumns * kernels::BlockBytes(kBlocks);
      const float scale = scale_at(r, c);
      std::memcpy(block, &scale, sizeof(scale));
      std::memcpy(block + sizeof(scale), in + c, kColumns);
    }
    for (int64_t c = 0; !whole && c < cols; ++c) {
      const uint16_t value = kernels::FloatToBfloat16(kernels::E4m3ToFloat(in[c]) * scale_at(r, c));
      std::memcpy(out + 2 * c, &value, sizeof(value));
    }
  }
  file_.Release(codes);
  return decoded;
}

absl::StatusOr<std::vector<TensorView>> WeightBinder::Matrices(std::string_view name, int64_t count,
                                                               int64_t rows, int64_t cols) {
  ASSIGN_OR_RETURN(const TensorView view, Checked(name, {count, rows, cols}));
  if (!IsMatrixType(view.dtype)) return RefuseType(name, view.dtype);
  const TensorView all = TensorView::Matrix(view.data, view.dtype, count * rows, cols);
  std::vector<TensorView> matrices;
  for (int64_t i = 0; i < count; ++i) matrices.push_back(RowRange(all, i * rows, rows));
  return matrices;
}

absl::StatusOr<std::vector<TensorView>> WeightBinder::TransposedMatrices(std::string_view name,
                                                                         int64_t count,
                                                                         int64_t rows,
                                                                         int64_t cols) {
  ASSIGN_OR_RETURN(const TensorView view, Checked(name, {count, cols, rows}));
  if (!IsMatrixType(view.dtype) || kernels::IsQuantized(view.dtype)) {
    return RefuseType(name, view.dtype);
  }
  const auto element = static_cast<size_t>(kernels::BlockBytes(view.dtype));
  uint8_t* out = NewBytes(static_cast<size_t>(view.num_bytes()));
  const auto* in = view.ptr<const uint8_t>();
  std::vector<TensorView> matrices;
  for (int64_t i = 0; i < count; ++i) {
    matrices.push_back(TensorView::Matrix(out, view.dtype, rows, cols));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c, out += element) {
        std::memcpy(out, in + static_cast<size_t>(c * rows + r) * element, element);
      }
    }
    in += static_cast<size_t>(rows * cols) * element;
  }
  file_.Release(view);
  return matrices;
}

absl::StatusOr<TensorView> WeightBinder::CopyAsFloat(const TensorView& view,
                                                     std::string_view name) {
  if (!kernels::CanDequantize(view.dtype)) return RefuseType(name, view.dtype);
  const int64_t row = view.shape[view.rank - 1];
  float* out = NewFloats(static_cast<size_t>(view.num_elements()));
  const auto* in = view.ptr<const uint8_t>();
  for (int64_t r = 0; r < view.num_elements() / row; ++r) {
    kernels::DequantizeRow(view.dtype, in + r * kernels::RowBytes(view.dtype, row), row,
                           out + r * row);
  }
  return TensorView::Contiguous(out, DType::kF32, view.shape, view.rank);
}

absl::StatusOr<TensorView> WeightBinder::Vector(std::string_view name, int64_t n) {
  ASSIGN_OR_RETURN(const TensorView view, Checked(name, {n}));
  return CopyAsFloat(view, name);
}

absl::StatusOr<TensorView> WeightBinder::SmallMatrix(std::string_view name, int64_t rows,
                                                     int64_t cols) {
  ASSIGN_OR_RETURN(const TensorView view, Checked(name, {rows, cols}));
  return CopyAsFloat(view, name);
}

absl::StatusOr<float> WeightBinder::Scalar(std::string_view name) {
  ASSIGN_OR_RETURN(const TensorView stored, file_.Tensor(name));
  const std::vector<int64_t> flat(static_cast<size_t>(stored.rank), 1);
  ASSIGN_OR_RETURN(const TensorView view, Checked(name, flat));
  ASSIGN_OR_RETURN(const TensorView value, CopyAsFloat(view, name));
  return *value.ptr<float>();
}

absl::StatusOr<TensorView> WeightBinder::Raw(std::string_view name, DType dtype,
                                             const std::vector<int64_t>& shape) {
  ASSIGN_OR_RETURN(const TensorView view, Checked(name, shape));
  if (view.dtype != dtype) return RefuseType(name, view.dtype);
  return view;
}

float* WeightBinder::NewFloats(size_t count) {
  spec_->owned.push_back(std::make_shared<std::vector<float>>(count));
  return spec_->owned.back()->data();
}

uint8_t* WeightBinder::NewBytes(size_t count) {
  spec_->owned_bytes.push_back(std::make_shared<std::vector<uint8_t>>(count));
  return spec_->owned_bytes.back()->data();
}

absl::Status WeightBinder::CheckAllUsed(
    const std::vector<std::string_view>& ignored_prefixes,
    const std::vector<std::string_view>& ignored_suffixes) const {
  std::string first;
  int64_t unused = 0;
  for (const std::string& name : file_.tensor_names()) {
    const std::string_view view = name;
    if (used_.contains(name) || view.find('/') != std::string_view::npos ||
        std::any_of(ignored_prefixes.begin(), ignored_prefixes.end(),
                    [&](std::string_view prefix) { return view.starts_with(prefix); }) ||
        std::any_of(ignored_suffixes.begin(), ignored_suffixes.end(),
                    [&](std::string_view suffix) { return view.ends_with(suffix); })) {
      continue;
    }
    if (unused++ == 0) first = name.substr(0, 120);
    for (char& c : first) c = c >= 0x20 && c < 0x7f ? c : '?';
  }
  if (unused == 0) return absl::OkStatus();
  return absl::UnimplementedError(StrCat(
      "the checkpoint has ", unused, " tensors that the architecture \"", spec_->family,
      "\" does not use here, \"", first, "\" among them: it is a variant that is not supported"));
}

TensorView RowRange(const TensorView& matrix, int64_t begin, int64_t count) {
  const auto offset = begin * kernels::RowBytes(matrix.dtype, matrix.shape[1]);
  return TensorView::Matrix(matrix.ptr<uint8_t>() + offset, matrix.dtype, count, matrix.shape[1]);
}

}  // namespace longstride::model
