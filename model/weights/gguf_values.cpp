// Values of GGUF metadata, converted.
#include <cmath>
#include <type_traits>

#include "model/weights/byte_reader.h"
#include "model/weights/gguf_parser.h"
#include "nlohmann/json.hpp"

namespace longstride::model {
namespace {

template <typename T>
bool ReadAs(ByteReader* reader, double* number, int64_t* integer) {
  T value{};
  if (!reader->Read(&value)) return false;
  *number = static_cast<double>(value);
  if constexpr (std::is_integral_v<T>) *integer = static_cast<int64_t>(value);
  return true;
}

bool ReadNumber(GgufType type, ByteReader* reader, double* number, int64_t* integer) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kBool:
      return ReadAs<uint8_t>(reader, number, integer);
    case GgufType::kInt8:
      return ReadAs<int8_t>(reader, number, integer);
    case GgufType::kUint16:
      return ReadAs<uint16_t>(reader, number, integer);
    case GgufType::kInt16:
      return ReadAs<int16_t>(reader, number, integer);
    case GgufType::kUint32:
      return ReadAs<uint32_t>(reader, number, integer);
    case GgufType::kInt32:
      return ReadAs<int32_t>(reader, number, integer);
    case GgufType::kUint64:
      return ReadAs<uint64_t>(reader, number, integer);
    case GgufType::kInt64:
      return ReadAs<int64_t>(reader, number, integer);
    case GgufType::kFloat32:
      return ReadAs<float>(reader, number, integer);
    case GgufType::kFloat64:
      return ReadAs<double>(reader, number, integer);
    case GgufType::kString:
    case GgufType::kArray:
      return false;
  }
  return false;
}

bool IsFloat(GgufType type) { return type == GgufType::kFloat32 || type == GgufType::kFloat64; }

nlohmann::json NumberToJson(GgufType type, double number, int64_t integer) {
  if (type == GgufType::kBool) return integer != 0;
  if (type == GgufType::kUint64) return static_cast<uint64_t>(integer);
  if (!IsFloat(type)) return integer;
  // JSON has no infinity or NaN; null then fails every check for a number.
  return std::isfinite(number) ? nlohmann::json(number) : nlohmann::json(nullptr);
}

nlohmann::json ValueToJson(std::span<const uint8_t> file, const GgufValue& value) {
  nlohmann::json elements = nlohmann::json::array();
  if (value.type == GgufType::kString) {
    for (std::string& text : GgufStringElements(file, value)) elements.push_back(std::move(text));
  } else {
    ByteReader reader(file, value.position);
    for (uint64_t i = 0; i < value.count; ++i) {
      double number = 0;
      int64_t integer = 0;
      if (!ReadNumber(value.type, &reader, &number, &integer)) break;
      elements.push_back(NumberToJson(value.type, number, integer));
    }
  }
  if (value.is_array || elements.empty()) return elements;
  return elements[0];
}

}  // namespace

std::vector<std::string> GgufStringElements(std::span<const uint8_t> file, const GgufValue& value) {
  std::vector<std::string> out;
  if (value.type != GgufType::kString) return out;
  ByteReader reader(file, value.position);
  out.reserve(value.count);
  for (uint64_t i = 0; i < value.count; ++i) {
    uint64_t length = 0;
    std::string_view text;
    if (!reader.Read(&length) || !reader.ReadView(length, &text)) break;
    out.emplace_back(text);
  }
  return out;
}

std::vector<int64_t> GgufIntElements(std::span<const uint8_t> file, const GgufValue& value) {
  std::vector<int64_t> out;
  if (IsFloat(value.type)) return out;
  ByteReader reader(file, value.position);
  double number = 0;
  int64_t integer = 0;
  for (uint64_t i = 0; i < value.count && ReadNumber(value.type, &reader, &number, &integer); ++i) {
    out.push_back(integer);
  }
  return out;
}

std::vector<double> GgufNumberElements(std::span<const uint8_t> file, const GgufValue& value) {
  std::vector<double> out;
  ByteReader reader(file, value.position);
  double number = 0;
  int64_t integer = 0;
  for (uint64_t i = 0; i < value.count && ReadNumber(value.type, &reader, &number, &integer); ++i) {
    out.push_back(number);
  }
  return out;
}

std::string GgufMetadataJson(std::span<const uint8_t> file, const GgufHeader& header) {
  nlohmann::json object = nlohmann::json::object();
  for (const auto& [key, value] : header.metadata) {
    if (!value.is_array || value.count <= kGgufSmallArray) object[key] = ValueToJson(file, value);
  }
  return object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace longstride::model
