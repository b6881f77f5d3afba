#include "kernels/cuda/linear/linear.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/linear/packed_weight.h"

namespace longstride::kernels::cuda {
namespace {

// Source bytes on the device at a time while packing.
constexpr int64_t kStagingBytes = int64_t{64} << 20;

bool CanPack(DType t) {
  return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16 || IsQuantized(t);
}

int64_t SourceRowBytes(const TensorView& part) {
  return IsQuantized(part.dtype) ? RowBytes(part.dtype, part.shape[1])
                                 : part.strides[0] * BlockBytes(part.dtype);
}

int64_t Aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Copies and packs one part behind `segment_row` rows of its segment.
absl::Status PackPart(const TensorView& part, int64_t segment_row, const LinearSegment& segment,
                      DeviceContext& context) {
  auto* packed = const_cast<uint8_t*>(segment.data);
  const int64_t row_bytes = SourceRowBytes(part), cols = part.shape[1];
  if (part.dtype == DType::kF32) {
    return context.Check(
        cudaMemcpy2DAsync(packed + segment_row * cols * 4, cols * 4, part.data, row_bytes, cols * 4,
                          part.shape[0], cudaMemcpyDefault, context.stream()),
        "PrepareLinear");
  }
  const int64_t chunk =
      std::clamp<int64_t>(kStagingBytes / row_bytes / kUnitRows * kUnitRows, kUnitRows,
                          (part.shape[0] + kUnitRows - 1) / kUnitRows * kUnitRows);
  Buffer staging;
  if (part.device == Device::kCpu) {
    ASSIGN_OR_RETURN(staging, context.Allocate(chunk * row_bytes));
  }
  for (int64_t row = 0; row < part.shape[0]; row += chunk) {
    const int64_t rows = std::min(chunk, part.shape[0] - row);
    const void* source = part.ptr<const char>() + row * row_bytes;
    if (part.device == Device::kCpu) {
      // The last row of a strided view may end early.
      const int64_t bytes = (rows - 1) * row_bytes + (IsQuantized(part.dtype)
                                                          ? row_bytes
                                                          : cols * BlockBytes(part.dtype));
      RETURN_IF_ERROR(context.Check(cudaMemcpyAsync(staging.data(), source, bytes,
                                                    cudaMemcpyHostToDevice, context.stream()),
                                    "PrepareLinear"));
      source = staging.data();
    }
    RETURN_IF_ERROR(context.Check(LaunchPacking({.dtype = part.dtype,
                                                 .source = source,
                                                 .source_row_bytes = row_bytes,
                                                 .rows = rows,
                                                 .cols = cols,
                                                 .row_begin = segment_row + row,
                                                 .weight_rows = segment.rows,
                                                 .packed = packed},
                                                context.stream()),
                                  "PrepareLinear"));
  }
  return context.Synchronize();  // before the staging memory goes
}

absl::Status RunSegment(const LinearParams& p, const LinearSegment& s, Operands& operands,
                        DeviceContext& context) {
  auto* out = static_cast<char*>(p.out.data) + s.row_begin * BlockBytes(p.out.dtype);
  const float* bias = p.bias.data == nullptr ? nullptr : p.bias.ptr<const float>() + s.row_begin;
  if (s.dtype == DType::kF32) {
    return context.Check(LaunchFloatProduct({.weight = reinterpret_cast<const float*>(s.data),
                                             .n = s.rows,
                                             .x = p.x,
                                             .out = out,
                                             .out_dtype = p.out.dtype,
                                             .out_stride = p.out.strides[0],
                                             .bias = bias,
                                             .accumulate = p.accumulate},
                                            context.stream()),
                         "Linear");
  }
  ASSIGN_OR_RETURN(const Operand x, operands.For(s.dtype));
  const Product product{.weight_dtype = s.dtype,
                        .weight = s.data,
                        .n = s.rows,
                        .x = x,
                        .out = out,
                        .out_dtype = p.out.dtype,
                        .out_stride = p.out.strides[0],
                        .bias = bias,
                        .accumulate = p.accumulate,
                        .multiprocessors = context.multiprocessors(),
                        .path = context.path()};
  return context.Check(IsDense(s.dtype) ? LaunchDenseProduct(product, context.stream())
                                        : LaunchQuantProduct(product, context.stream()),
                       "Linear");
}

}  // namespace

CudaLinearWeight::CudaLinearWeight(int64_t rows, int64_t cols, std::vector<LinearSegment> segments,
                                   Buffer buffer)
    : LinearWeight(rows, cols), segments_(std::move(segments)), buffer_(std::move(buffer)) {
  owned_bytes_ = buffer_.bytes();
  // All segments then take bf16 rows, as they are or (fp8) to convert them.
  const bool bf16 =
      cols % 8 == 0 && std::all_of(segments_.begin(), segments_.end(), [](const LinearSegment& s) {
        return s.dtype == DType::kFP8_128 ||
               (s.dtype != DType::kF32 && OperandType(s.dtype) == DType::kBF16);
      });
  if (bf16) input_type_ = DType::kBF16;
}

absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareCudaLinear(std::span<const TensorView> parts,
                                                                DeviceContext& context) {
  const int64_t cols = parts[0].shape[1];
  std::vector<LinearSegment> segments;
  std::vector<int64_t> row_in_segment;  // of each part
  std::vector<size_t> segment_of;
  int64_t rows = 0;
  for (const TensorView& part : parts) {
    if (!CanPack(part.dtype)) {
      return absl::UnimplementedError(StrCat("The CUDA backend has no matrix product for ",
                                             DTypeName(part.dtype),
                                             " weights; use f32, f16, bf16, fp8 with scales or a GGUF block type."));
    }
    // A part may follow another of its format only at a row where packed pieces begin.
    if (segments.empty() || segments.back().dtype != part.dtype ||
        segments.back().rows % kUnitRows != 0) {
      segments.push_back({.dtype = part.dtype, .row_begin = rows});
    }
    segment_of.push_back(segments.size() - 1);
    row_in_segment.push_back(segments.back().rows);
    segments.back().rows += part.shape[0];
    rows += part.shape[0];
  }
  int64_t bytes = 0;
  for (const LinearSegment& s : segments) bytes += Aligned(PackedBytes(s.dtype, s.rows, cols));
  ASSIGN_OR_RETURN(Buffer buffer, context.Allocate(std::max<int64_t>(bytes, 1)));
  int64_t offset = 0;
  for (LinearSegment& s : segments) {
    s.data = buffer.as<uint8_t>() + offset;
    offset += Aligned(PackedBytes(s.dtype, s.rows, cols));
    // What lies behind the atoms: padding, and the scales of rows that do not exist.
    if (IsDense(s.dtype)) {
      const int64_t atoms = AtomsBytes(s.dtype, s.rows, cols) - kDensePadding;
      RETURN_IF_ERROR(context.Check(
          cudaMemsetAsync(const_cast<uint8_t*>(s.data) + atoms, 0,
                          Aligned(PackedBytes(s.dtype, s.rows, cols)) - atoms, context.stream()),
          "PrepareLinear"));
    }
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].shape[0] == 0) continue;
    const LinearSegment& s = segments[segment_of[i]];
    RETURN_IF_ERROR(
        PackPart(parts[i], row_in_segment[i], s, context));
  }
  RETURN_IF_ERROR(context.Synchronize());
  return std::make_unique<CudaLinearWeight>(rows, cols, std::move(segments), std::move(buffer));
}

absl::StatusOr<Operand> Operands::For(DType weight_dtype) {
  const bool fp8 = weight_dtype == DType::kFP8_128 && context_.path() == KernelPath::kFast;
  const DType type = fp8 ? DType::kF8E4M3 : OperandType(weight_dtype);
  Operand& made = made_[fp8 ? 2 : type == DType::kF16 ? 1 : 0];
  if (made.data != nullptr) return made;
  made.dtype = type;
  made.cols = x_.shape[1];
  made.rows = rows_ < 0 ? x_.shape[0] : rows_;
  const bool as_it_is = type == DType::kBF16 && x_.dtype == DType::kBF16 && rows_ < 0 &&
                        x_.strides[0] % 8 == 0 && reinterpret_cast<uintptr_t>(x_.data) % 16 == 0;
  if (as_it_is) {
    made.data = x_.data;
    made.pitch = x_.strides[0];
    return made;
  }
  made.pitch = (made.cols + 7) / 8 * 8;
  ASSIGN_OR_RETURN(char* data, scratch_.Take<char>(made.rows * made.pitch * BlockBytes(type)));
  float* row_scale = nullptr;
  if (type != DType::kBF16) {
    ASSIGN_OR_RETURN(row_scale, scratch_.Take<float>(made.rows));
  }
  made.data = data;
  made.row_scale = row_scale;
  const Conversion conversion{.x = x_,
                              .source_rows = source_rows_,
                              .factors = factors_,
                              .rows = made.rows,
                              .to = type,
                              .out = data,
                              .pitch = made.pitch,
                              .row_scale = row_scale};
  RETURN_IF_ERROR(context_.Check(LaunchConversion(conversion, context_.stream()), "Linear"));
  return made;
}

absl::Status RunCudaLinear(const LinearParams& p, DeviceContext& context) {
  const auto* weight = dynamic_cast<const CudaLinearWeight*>(p.weight);
  if (weight == nullptr) return absl::InternalError("Linear: a weight of another backend");
  if (p.x.shape[0] == 0) return absl::OkStatus();
  Scratch scratch(context);
  Operands operands(p.x, context, scratch);
  for (const LinearSegment& segment : weight->segments()) {
    if (segment.rows > 0) RETURN_IF_ERROR(RunSegment(p, segment, operands, context));
  }
  return absl::OkStatus();
}

}  // namespace longstride::kernels::cuda
