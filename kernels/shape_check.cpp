#include "kernels/shape_check.h"

#include <cstring>

#include "config/base/check.h"

namespace longstride::kernels {
namespace {

std::string ShapeString(const TensorView& t) {
  std::string s = "[";
  for (int d = 0; d < t.rank; ++d) StrAppend(&s, d == 0 ? "" : ", ", t.shape[d]);
  return s + "]";
}

std::string ExpectedString(std::initializer_list<Dim> dims) {
  std::string s = "[";
  bool first = true;
  for (const Dim& d : dims) {
    StrAppend(&s, first ? "" : ", ");
    if (d.symbol != nullptr) {
      StrAppend(&s, d.symbol);
    } else {
      StrAppend(&s, d.value);
    }
    first = false;
  }
  return s + "]";
}

}  // namespace

const ShapeCheck::Binding* ShapeCheck::Find(const char* symbol) const {
  for (int i = 0; i < num_bindings_; ++i) {
    if (std::strcmp(bindings_[i].symbol, symbol) == 0) return &bindings_[i];
  }
  return nullptr;
}

void ShapeCheck::Fail(std::string message) {
  if (!ok_) return;
  ok_ = false;
  message_ = std::move(message);
}

ShapeCheck& ShapeCheck::Bind(const char* symbol, int64_t value, const char* source) {
  if (!ok_) return *this;
  if (const Binding* b = Find(symbol)) {
    if (b->value != value) {
      Fail(StrCat(source, " has ", symbol, " = ", value, ", expected ", b->value));
    }
    return *this;
  }
  LS_CHECK_LT(num_bindings_, kMaxSymbols);
  bindings_[num_bindings_++] = {symbol, value};
  return *this;
}

ShapeCheck& ShapeCheck::Tensor(const char* name, const TensorView& t,
                               std::initializer_list<Dim> dims, Device device) {
  if (!ok_) return *this;
  if (t.rank != static_cast<int32_t>(dims.size())) {
    Fail(StrCat(name, " has shape ", ShapeString(t), ", expected ", ExpectedString(dims)));
    return *this;
  }
  if (t.device != device) {
    Fail(StrCat(name, " is on the wrong device"));
    return *this;
  }
  int d = 0;
  for (const Dim& dim : dims) {
    const int64_t got = t.shape[d++];
    int64_t want = dim.value;
    if (dim.symbol != nullptr) {
      const Binding* b = Find(dim.symbol);
      if (b == nullptr) {
        LS_CHECK_LT(num_bindings_, kMaxSymbols);
        bindings_[num_bindings_++] = {dim.symbol, got};
        continue;
      }
      want = b->value;
    }
    if (got != want) {
      Fail(StrCat(name, " has shape ", ShapeString(t), ", expected ", ExpectedString(dims),
                  " with dimension ", d - 1, " = ", want));
      return *this;
    }
  }
  int64_t elements = 1;
  for (int i = 0; i < t.rank; ++i) elements *= t.shape[i];
  if (elements == 0) return *this;
  if (t.data == nullptr) {
    Fail(StrCat(name, " has no data"));
  } else if (t.rank > 0 && t.shape[t.rank - 1] > 1 && t.strides[t.rank - 1] != 1) {
    Fail(StrCat(name, " has innermost stride ", t.strides[t.rank - 1], ", expected 1"));
  }
  return *this;
}

ShapeCheck& ShapeCheck::F32(const char* name, const TensorView& t,
                            std::initializer_list<Dim> dims) {
  Tensor(name, t, dims, device_);
  if (ok_ && t.dtype != DType::kF32) {
    Fail(StrCat(name, " has dtype ", DTypeName(t.dtype), ", expected f32"));
  }
  return *this;
}

ShapeCheck& ShapeCheck::Activation(const char* name, const TensorView& t,
                                   std::initializer_list<Dim> dims) {
  if (device_ == Device::kCpu || t.dtype != DType::kBF16) return F32(name, t, dims);
  return Tensor(name, t, dims, device_);
}

ShapeCheck& ShapeCheck::OptionalF32(const char* name, const TensorView& t,
                                    std::initializer_list<Dim> dims) {
  return t.data == nullptr ? *this : F32(name, t, dims);
}

ShapeCheck& ShapeCheck::That(bool ok, const char* expectation, int64_t got) {
  if (ok_ && !ok) Fail(StrCat("expected ", expectation, ", got ", got));
  return *this;
}

int64_t ShapeCheck::Get(const char* symbol) const {
  const Binding* b = Find(symbol);
  return b == nullptr ? 0 : b->value;
}

absl::Status ShapeCheck::status() const {
  if (ok_) return absl::OkStatus();
  return absl::InternalError(StrCat(op_, ": ", message_));
}

}  // namespace longstride::kernels
