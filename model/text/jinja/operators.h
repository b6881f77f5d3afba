// Python's operators and slices on values.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/status/statusor.h"
#include "model/text/jinja/ast.h"
#include "model/text/jinja/value.h"

namespace longstride::model::jinja {

// `limit`: the longest text or list that may come out.
absl::StatusOr<Value> ApplyBinary(BinaryOp op, const Value& left, const Value& right, size_t limit);
absl::StatusOr<bool> ApplyCompare(CompareOp op, const Value& left, const Value& right);
// Python's `in`.
absl::StatusOr<bool> Contains(const Value& container, const Value& item);

struct SliceBounds {
  std::optional<int64_t> start, stop, step;
};
// value[start:stop:step] of texts and lists.
absl::StatusOr<Value> SliceValue(const Value& value, const SliceBounds& bounds);

// Characters of valid UTF-8, and the byte offset of character number `index` (or the size).
int64_t CountCharacters(std::string_view text);
size_t CharacterOffset(std::string_view text, int64_t index);

// An error about an operation on an undefined value, as Jinja words it.
absl::Status UndefinedError(const Value& value);

}  // namespace longstride::model::jinja
