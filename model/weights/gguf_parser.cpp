#include "model/weights/gguf_parser.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <set>

#include "model/weights/byte_reader.h"

namespace longstride::model {
namespace {

using kernels::DType;

constexpr uint32_t kMagic = 0x46554747;  // "GGUF", little-endian
constexpr uint64_t kMaxKeys = 65536;
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxStringBytes = uint64_t{1} << 26;
constexpr uint64_t kMaxArrayElements = uint64_t{1} << 28;
// Arrays up to kGgufSmallArray elements become JSON; all of them together at most this many.
constexpr uint64_t kMaxSmallArrayElements = uint64_t{1} << 20;
constexpr uint64_t kMaxTensors = uint64_t{1} << 20;
constexpr uint64_t kMaxTensorNameBytes = 512;
constexpr uint32_t kMinAlignment = 8;  // every element type may then be read in place
constexpr uint32_t kMaxAlignment = 1 << 20;

struct TensorType {
  uint32_t id;
  const char* name;
  std::optional<DType> dtype;
};

constexpr TensorType kTensorTypes[] = {
    {0, "F32", DType::kF32},      {1, "F16", DType::kF16},       {2, "Q4_0", DType::kQ4_0},
    {3, "Q4_1", DType::kQ4_1},    {6, "Q5_0", DType::kQ5_0},     {7, "Q5_1", DType::kQ5_1},
    {8, "Q8_0", DType::kQ8_0},    {9, "Q8_1", std::nullopt},     {10, "Q2_K", std::nullopt},
    {11, "Q3_K", std::nullopt},   {12, "Q4_K", DType::kQ4_K},    {13, "Q5_K", DType::kQ5_K},
    {14, "Q6_K", DType::kQ6_K},   {15, "Q8_K", std::nullopt},    {16, "IQ2_XXS", std::nullopt},
    {17, "IQ2_XS", std::nullopt}, {18, "IQ3_XXS", std::nullopt}, {19, "IQ1_S", std::nullopt},
    {20, "IQ4_NL", std::nullopt}, {21, "IQ3_S", std::nullopt},   {22, "IQ2_S", std::nullopt},
    {23, "IQ4_XS", std::nullopt}, {24, "I8", DType::kI8},        {25, "I16", std::nullopt},
    {26, "I32", DType::kI32},     {27, "I64", DType::kI64},      {28, "F64", std::nullopt},
    {29, "IQ1_M", std::nullopt},  {30, "BF16", DType::kBF16},    {34, "TQ1_0", std::nullopt},
    {35, "TQ2_0", std::nullopt},  {39, "MXFP4", DType::kMXFP4},  {40, "NVFP4", std::nullopt},
};

const TensorType* FindTensorType(uint32_t id) {
  for (const TensorType& type : kTensorTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

std::string ReadableTensorTypes() {
  std::string names;
  for (const TensorType& type : kTensorTypes) {
    if (type.dtype.has_value()) StrAppend(&names, names.empty() ? "" : ", ", type.name);
  }
  return names;
}

// Bytes of one element; 0 for strings and arrays, -1 for an unknown type.
int ElementBytes(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return -1;
}

// Names come from the file: shortened, and only printable ASCII, before they enter a message.
std::string Quoted(std::string_view name) {
  constexpr size_t kShown = 80;
  std::string out = "\"";
  for (const char c : name.substr(0, kShown)) out += (c >= 0x20 && c < 0x7f && c != '"') ? c : '?';
  return out + (name.size() > kShown ? "...\"" : "\"");
}

absl::Status Truncated(std::string_view where, size_t file_bytes) {
  return absl::InvalidArgumentError(StrCat("the GGUF file ends inside ", where, " (it has ",
                                           file_bytes,
                                           " bytes): it is truncated or damaged; fetch it again"));
}

class Parser {
 public:
  explicit Parser(std::span<const uint8_t> file) : file_(file), reader_(file) {}

  absl::StatusOr<GgufHeader> Run() {
    uint64_t num_tensors = 0;
    uint64_t num_keys = 0;
    RETURN_IF_ERROR(ReadPreamble(&num_tensors, &num_keys));
    for (uint64_t i = 0; i < num_keys; ++i) RETURN_IF_ERROR(ReadKey());
    RETURN_IF_ERROR(ReadAlignment());
    header_.tensors.reserve(std::min<uint64_t>(num_tensors, 4096));
    std::set<std::string_view> names;
    for (uint64_t i = 0; i < num_tensors; ++i) {
      std::string_view name;
      RETURN_IF_ERROR(ReadTensor(&name));
      if (!names.insert(name).second) {
        return absl::InvalidArgumentError(StrCat("the GGUF file names tensor ", Quoted(name),
                                                 " twice; each name may occur once"));
      }
    }
    header_.header_bytes = reader_.position();
    RETURN_IF_ERROR(PlaceTensors());
    return std::move(header_);
  }

 private:
  absl::Status ReadPreamble(uint64_t* num_tensors, uint64_t* num_keys) {
    uint32_t magic = 0;
    if (!reader_.Read(&magic)) return Truncated("its first bytes", file_.size());
    if (magic != kMagic) {
      return absl::InvalidArgumentError(
          "not a GGUF file: it does not start with the letters GGUF; give a .gguf file or a "
          "folder with config.json and safetensors files");
    }
    if (!reader_.Read(&header_.version)) return Truncated("its version", file_.size());
    if (header_.version != 0 && (header_.version & 0xffff) == 0) {
      return absl::UnimplementedError(
          "the GGUF file is big-endian; only little-endian files are read: convert it");
    }
    if (header_.version != 2 && header_.version != 3) {
      return absl::UnimplementedError(StrCat("the GGUF file has version ", header_.version,
                                             "; versions 2 and 3 are read: convert it"));
    }
    if (!reader_.Read(num_tensors) || !reader_.Read(num_keys)) {
      return Truncated("its counts", file_.size());
    }
    if (*num_tensors > kMaxTensors || *num_keys > kMaxKeys) {
      return absl::InvalidArgumentError(
          StrCat("the GGUF file announces ", *num_tensors, " tensors and ", *num_keys,
                 " metadata keys; at most ", kMaxTensors, " and ", kMaxKeys, " are allowed"));
    }
    return absl::OkStatus();
  }

  absl::Status ReadString(uint64_t limit, std::string_view where, std::string_view* out) {
    uint64_t length = 0;
    if (!reader_.Read(&length)) return Truncated(where, file_.size());
    if (length > limit) {
      return absl::InvalidArgumentError(StrCat("the GGUF file has a string of ", length,
                                               " bytes in ", where, "; at most ", limit,
                                               " are allowed: the file is damaged"));
    }
    if (!reader_.ReadView(length, out)) return Truncated(where, file_.size());
    return absl::OkStatus();
  }

  absl::Status ReadKey() {
    std::string_view key;
    RETURN_IF_ERROR(ReadString(kMaxKeyBytes, "its metadata", &key));
    const std::string where = StrCat("metadata key ", Quoted(key));
    uint32_t type = 0;
    if (!reader_.Read(&type)) return Truncated(where, file_.size());
    GgufValue value;
    value.type = static_cast<GgufType>(type);
    if (value.type == GgufType::kArray) {
      value.is_array = true;
      if (!reader_.Read(&type) || !reader_.Read(&value.count)) {
        return Truncated(where, file_.size());
      }
      value.type = static_cast<GgufType>(type);
      if (value.type == GgufType::kArray) {
        return absl::InvalidArgumentError(
            StrCat(where, " is an array of arrays, which no known checkpoint uses"));
      }
    }
    RETURN_IF_ERROR(SkipElements(where, &value));
    if (!header_.metadata.emplace(std::string(key), value).second) {
      return absl::InvalidArgumentError(StrCat(where, " occurs twice in the GGUF file"));
    }
    return absl::OkStatus();
  }

  absl::Status SkipElements(const std::string& where, GgufValue* value) {
    const int element_bytes = ElementBytes(value->type);
    if (element_bytes < 0) {
      return absl::InvalidArgumentError(StrCat(where, " has the unknown type ",
                                               static_cast<uint32_t>(value->type),
                                               "; types 0 to 12 are defined"));
    }
    if (value->count > kMaxArrayElements) {
      return absl::InvalidArgumentError(StrCat(where, " announces ", value->count,
                                               " elements; at most ", kMaxArrayElements,
                                               " are allowed"));
    }
    if (value->count <= kGgufSmallArray) small_elements_ += value->count;
    if (small_elements_ > kMaxSmallArrayElements) {
      return absl::InvalidArgumentError(StrCat("the GGUF file's metadata arrays have more than ",
                                               kMaxSmallArrayElements, " elements together"));
    }
    value->position = reader_.position();
    if (value->type == GgufType::kString) {
      for (uint64_t i = 0; i < value->count; ++i) {
        std::string_view text;
        RETURN_IF_ERROR(ReadString(kMaxStringBytes, where, &text));
      }
    } else if (!reader_.Skip(value->count * static_cast<uint64_t>(element_bytes))) {
      return Truncated(where, file_.size());
    }
    value->bytes = reader_.position() - value->position;
    return absl::OkStatus();
  }

  absl::Status ReadAlignment() {
    const auto it = header_.metadata.find("general.alignment");
    if (it == header_.metadata.end()) return absl::OkStatus();
    const std::vector<int64_t> values = GgufIntElements(file_, it->second);
    if (it->second.is_array || values.size() != 1 || values[0] < kMinAlignment ||
        values[0] > kMaxAlignment || !std::has_single_bit(static_cast<uint64_t>(values[0]))) {
      return absl::InvalidArgumentError(
          StrCat("metadata key \"general.alignment\" must be a power of two from ", kMinAlignment,
                 " to ", kMaxAlignment));
    }
    header_.alignment = static_cast<uint32_t>(values[0]);
    return absl::OkStatus();
  }

  absl::Status ReadTensor(std::string_view* name) {
    RETURN_IF_ERROR(ReadString(kMaxTensorNameBytes, "its tensor directory", name));
    const std::string where = StrCat("the directory entry of tensor ", Quoted(*name));
    uint32_t rank = 0;
    if (!reader_.Read(&rank)) return Truncated(where, file_.size());
    if (rank < 1 || rank > kernels::kMaxRank) {
      return absl::InvalidArgumentError(
          StrCat("tensor ", Quoted(*name), " has ", rank, " dimensions; 1 to 4 are allowed"));
    }
    GgufTensor tensor;
    tensor.name = std::string(*name);
    tensor.rank = static_cast<int>(rank);
    uint64_t dims[kernels::kMaxRank] = {};
    for (uint32_t d = 0; d < rank; ++d) {
      if (!reader_.Read(&dims[d])) return Truncated(where, file_.size());
      tensor.shape[rank - 1 - d] = static_cast<int64_t>(dims[d]);  // range checked below
    }
    uint32_t type_id = 0;
    uint64_t offset = 0;
    if (!reader_.Read(&type_id) || !reader_.Read(&offset)) return Truncated(where, file_.size());
    const TensorType* type = FindTensorType(type_id);
    if (type == nullptr || !type->dtype.has_value()) {
      return absl::UnimplementedError(
          StrCat("tensor ", Quoted(*name), " has type ", GgufTensorTypeName(type_id),
                 ", which is not read; supported are ", ReadableTensorTypes()));
    }
    tensor.dtype = *type->dtype;
    RETURN_IF_ERROR(Measure(std::span(dims, rank), &tensor));
    // Relative to the data section until PlaceTensors.
    if (offset > file_.size() || offset % header_.alignment != 0) {
      return absl::InvalidArgumentError(
          StrCat("tensor ", Quoted(*name), " starts at offset ", offset,
                 ", which is outside the file or no multiple of ", header_.alignment));
    }
    tensor.offset = static_cast<size_t>(offset);
    header_.tensors.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  // Bytes of the tensor; dims are innermost first, as in the file.
  absl::Status Measure(std::span<const uint64_t> dims, GgufTensor* tensor) {
    const auto block = static_cast<uint64_t>(kernels::BlockElements(tensor->dtype));
    if (dims[0] % block != 0) {
      return absl::InvalidArgumentError(
          StrCat("tensor ", Quoted(tensor->name), " has rows of ", dims[0], " elements, but type ",
                 kernels::DTypeName(tensor->dtype), " stores whole blocks of ", block));
    }
    uint64_t bytes = static_cast<uint64_t>(kernels::BlockBytes(tensor->dtype));
    bool first = true;
    for (const uint64_t dim : dims) {
      const uint64_t units = first ? dim / block : dim;
      first = false;
      if (dim == 0 || dim > static_cast<uint64_t>(INT64_MAX) || units > file_.size() / bytes) {
        return absl::InvalidArgumentError(
            StrCat("tensor ", Quoted(tensor->name), " has a dimension of ", dim,
                   ", which is zero or larger than the file of ", file_.size(),
                   " bytes: the file is truncated or damaged"));
      }
      bytes *= units;
    }
    tensor->bytes = static_cast<size_t>(bytes);
    return absl::OkStatus();
  }

  absl::Status PlaceTensors() {
    const size_t padding =
        (header_.alignment - reader_.position() % header_.alignment) % header_.alignment;
    const size_t data = reader_.position() + padding;
    std::vector<const GgufTensor*> order;
    for (GgufTensor& tensor : header_.tensors) {
      // Neither sum can wrap: offset and bytes are at most the file's size.
      if (data > file_.size() || tensor.offset > file_.size() - data ||
          tensor.bytes > file_.size() - data - tensor.offset) {
        return absl::InvalidArgumentError(
            StrCat("tensor ", Quoted(tensor.name), " needs ", tensor.bytes, " bytes at offset ",
                   data + tensor.offset, ", but the file has ", file_.size(),
                   " bytes: it is truncated or damaged; fetch it again"));
      }
      tensor.offset += data;
      order.push_back(&tensor);
    }
    std::sort(order.begin(), order.end(),
              [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
    for (size_t i = 1; i < order.size(); ++i) {
      if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset) {
        return absl::InvalidArgumentError(StrCat("tensors ", Quoted(order[i - 1]->name), " and ",
                                                 Quoted(order[i]->name),
                                                 " overlap in the GGUF file: it is damaged"));
      }
    }
    return absl::OkStatus();
  }

  std::span<const uint8_t> file_;
  ByteReader reader_;
  GgufHeader header_;
  uint64_t small_elements_ = 0;
};

}  // namespace

absl::StatusOr<GgufHeader> ParseGguf(std::span<const uint8_t> file) { return Parser(file).Run(); }

std::string GgufTensorTypeName(uint32_t id) {
  const TensorType* type = FindTensorType(id);
  return type != nullptr ? type->name : StrCat("type ", id);
}

}  // namespace longstride::model
