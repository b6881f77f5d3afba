#include "model/weights/safetensors_parser.h"

#include <algorithm>
#include <set>
#include <utility>

#include "model/weights/byte_reader.h"
#include "model/weights/json_check.h"
#include "nlohmann/json.hpp"

namespace longstride::model {
namespace {

using kernels::DType;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxIndexBytes = size_t{64} << 20;
constexpr size_t kMaxTensors = size_t{1} << 20;
constexpr size_t kMaxNameBytes = 1024;
constexpr int kMaxDepth = 4;

std::string Quoted(std::string_view name) {
  constexpr size_t kShown = 100;
  std::string out = "\"";
  for (const char c : name.substr(0, kShown)) out += (c >= 0x20 && c < 0x7f && c != '"') ? c : '?';
  return out + (name.size() > kShown ? "...\"" : "\"");
}

std::optional<DType> TypeByName(std::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "F16") return DType::kF16;
  if (name == "BF16") return DType::kBF16;
  if (name == "F8_E4M3") return DType::kF8E4M3;
  if (name == "U8") return DType::kU8;
  if (name == "I8") return DType::kI8;
  if (name == "I32") return DType::kI32;
  if (name == "I64") return DType::kI64;
  return std::nullopt;
}

// Reads the header event by event: nothing is built but the directory, and duplicate names are
// seen.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<SafetensorsTensor> tensors;
  absl::Status status = absl::InvalidArgumentError("the safetensors header is not a JSON object");

  bool start_object(std::size_t) override {
    if (array_ != Array::kNone || depth_ >= 2) return Fail("nests an object where none belongs");
    if (++depth_ == 2 && !in_metadata_) {
      tensor_ = {};
      tensor_.name = name_;
      seen_ = 0;
    }
    return true;
  }
  bool end_object() override {
    if (--depth_ == 0) {
      status = absl::OkStatus();
      return true;
    }
    if (!in_metadata_) {
      if (seen_ != (kDtype | kShape | kOffsets)) {
        return Fail("must give dtype, shape and data_offsets");
      }
      tensors.push_back(std::move(tensor_));
    }
    in_metadata_ = false;
    return true;
  }
  bool key(string_t& text) override {
    if (depth_ == 2) {
      field_ = text;
      return true;
    }
    if (text.size() > kMaxNameBytes || tensors.size() >= kMaxTensors) {
      return Fail("has too long a name, or there are too many tensors");
    }
    name_ = text;
    in_metadata_ = text == "__metadata__";
    if (!names_.insert(text).second) return Fail("is named twice");
    return true;
  }
  bool string(string_t& text) override {
    if (in_metadata_ && depth_ == 2) return true;
    if (depth_ != 2 || field_ != "dtype" || array_ != Array::kNone || (seen_ & kDtype) != 0) {
      return Fail("has a text where none belongs");
    }
    seen_ |= kDtype;
    tensor_.type_name = text.substr(0, 32);
    tensor_.dtype = TypeByName(text);
    return true;
  }
  bool start_array(std::size_t) override {
    const bool shape = field_ == "shape";
    if (depth_ != 2 || in_metadata_ || array_ != Array::kNone ||
        (!shape && field_ != "data_offsets") || (seen_ & (shape ? kShape : kOffsets)) != 0) {
      return Fail("has a list where none belongs");
    }
    array_ = shape ? Array::kShape : Array::kOffsets;
    count_ = 0;
    return true;
  }
  bool end_array() override {
    if (array_ == Array::kOffsets && (count_ != 2 || end_ < begin_)) {
      return Fail("must have two ascending data_offsets");
    }
    if (array_ == Array::kOffsets) {
      tensor_.offset = static_cast<size_t>(begin_);
      tensor_.bytes = static_cast<size_t>(end_ - begin_);
    }
    seen_ |= array_ == Array::kShape ? kShape : kOffsets;
    if (array_ == Array::kShape) tensor_.rank = count_;
    array_ = Array::kNone;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (array_ == Array::kShape) {
      if (count_ >= kernels::kMaxRank || value > static_cast<uint64_t>(INT64_MAX)) {
        return Fail("has more than 4 dimensions, or one that is too large");
      }
      tensor_.shape[count_++] = static_cast<int64_t>(value);
      return true;
    }
    if (array_ != Array::kOffsets || count_ >= 2) return Fail("has a number where none belongs");
    (count_++ == 0 ? begin_ : end_) = value;
    return true;
  }
  bool number_integer(number_integer_t) override { return Fail("has a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return Fail("has a fraction"); }
  bool null() override { return Fail("has a null"); }
  bool boolean(bool) override { return Fail("has a boolean"); }
  bool binary(binary_t&) override { return Fail("has binary data"); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    status =
        absl::InvalidArgumentError(StrCat("the safetensors header is not valid JSON near its byte ",
                                          position, ": the file is damaged; fetch it again"));
    return false;
  }

 private:
  enum class Array { kNone, kShape, kOffsets };
  static constexpr int kDtype = 1, kShape = 2, kOffsets = 4;

  bool Fail(std::string_view problem) {
    status = absl::InvalidArgumentError(
        StrCat("entry ", Quoted(name_), " of the safetensors header ", problem));
    return false;
  }

  int depth_ = 0;
  bool in_metadata_ = false;
  std::string name_;
  std::string field_;
  std::set<std::string, std::less<>> names_;
  SafetensorsTensor tensor_;
  int seen_ = 0;
  Array array_ = Array::kNone;
  int count_ = 0;
  uint64_t begin_ = 0;
  uint64_t end_ = 0;
};

// Checks one tensor's extent, given relative to the data section, and makes it absolute.
absl::Status PlaceTensor(size_t data_start, size_t file_bytes, SafetensorsTensor* tensor) {
  const size_t data_bytes = file_bytes - data_start;
  if (tensor->offset > data_bytes || tensor->bytes > data_bytes - tensor->offset) {
    return absl::InvalidArgumentError(
        StrCat("tensor ", Quoted(tensor->name), " needs ", tensor->bytes, " bytes at offset ",
               tensor->offset, ", but the safetensors file has ", data_bytes,
               " bytes of data: it is truncated or damaged; fetch it again"));
  }
  tensor->offset += data_start;
  if (!tensor->dtype.has_value()) return absl::OkStatus();
  const auto element_bytes = static_cast<uint64_t>(kernels::BlockBytes(*tensor->dtype));
  uint64_t bytes = element_bytes;
  for (int d = 0; d < tensor->rank; ++d) {
    const auto dim = static_cast<uint64_t>(tensor->shape[d]);
    if (dim == 0 || dim > file_bytes / bytes) {
      return absl::InvalidArgumentError(StrCat("tensor ", Quoted(tensor->name),
                                               " has a dimension of ", dim,
                                               ", which is zero or larger than the file"));
    }
    bytes *= dim;
  }
  if (bytes != tensor->bytes) {
    return absl::InvalidArgumentError(StrCat("tensor ", Quoted(tensor->name), " has a shape of ",
                                             bytes, " bytes, but occupies ", tensor->bytes));
  }
  if (tensor->offset % element_bytes != 0) {
    return absl::InvalidArgumentError(
        StrCat("tensor ", Quoted(tensor->name), " of type ", tensor->type_name,
               " is not aligned in the file; save it again with a current safetensors library"));
  }
  return absl::OkStatus();
}

absl::Status CheckNoOverlap(const std::vector<SafetensorsTensor>& tensors) {
  std::vector<const SafetensorsTensor*> order;
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.bytes > 0) order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](const SafetensorsTensor* a, const SafetensorsTensor* b) {
    return a->offset < b->offset;
  });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset) {
      return absl::InvalidArgumentError(StrCat("tensors ", Quoted(order[i - 1]->name), " and ",
                                               Quoted(order[i]->name),
                                               " overlap in the safetensors file"));
    }
  }
  return absl::OkStatus();
}

bool IsPlainName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\\') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

}  // namespace

absl::StatusOr<std::vector<SafetensorsTensor>> ParseSafetensors(std::span<const uint8_t> file) {
  ByteReader reader(file);
  uint64_t header_bytes = 0;
  if (!reader.Read(&header_bytes)) {
    return absl::InvalidArgumentError(
        "the safetensors file is shorter than 8 bytes: it is truncated; fetch it again");
  }
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(StrCat("the safetensors file announces a header of ",
                                             header_bytes, " bytes; at most ", kMaxHeaderBytes,
                                             " are allowed: it is damaged or of another format"));
  }
  std::string_view header;
  if (!reader.ReadView(header_bytes, &header)) {
    return absl::InvalidArgumentError(StrCat("the safetensors file announces a header of ",
                                             header_bytes, " bytes, but has only ", file.size(),
                                             " bytes: it is truncated; fetch it again"));
  }
  RETURN_IF_ERROR(CheckJsonLimits(header, "the safetensors header", kMaxHeaderBytes, kMaxDepth));
  HeaderHandler handler;
  nlohmann::json::sax_parse(header.begin(), header.end(), &handler);
  RETURN_IF_ERROR(handler.status);
  for (SafetensorsTensor& tensor : handler.tensors) {
    RETURN_IF_ERROR(PlaceTensor(reader.position(), file.size(), &tensor));
  }
  RETURN_IF_ERROR(CheckNoOverlap(handler.tensors));
  return std::move(handler.tensors);
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ParseSafetensorsIndex(
    std::string_view json) {
  constexpr std::string_view kWhat = "model.safetensors.index.json";
  RETURN_IF_ERROR(CheckJsonLimits(json, kWhat, kMaxIndexBytes, 8));
  const nlohmann::json index = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return absl::InvalidArgumentError(
        StrCat(kWhat, " is not valid JSON with an object \"weight_map\""));
  }
  std::vector<std::pair<std::string, std::string>> entries;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string() || !IsPlainName(file.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(
          StrCat(kWhat, " gives no plain file name for tensor ", Quoted(tensor),
                 "; every entry must name a file of the same folder"));
    }
    entries.emplace_back(tensor, file.get<std::string>());
  }
  return entries;
}

}  // namespace longstride::model
