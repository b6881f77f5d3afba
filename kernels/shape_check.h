// A small symbolic matcher for the shapes and dtypes of an op's tensors: the first use of a symbol
// binds it, later uses must agree. Costs no allocation while everything matches.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "config/base/status.h"
#include "kernels/tensor_view.h"

namespace longstride::kernels {

// One expected dimension: a number, or a symbol ("rows") bound by its first use.
struct Dim {
  constexpr Dim(int64_t n) : value(n) {}             // NOLINT: both conversions are the point
  constexpr Dim(int n) : value(n) {}                 // NOLINT
  constexpr Dim(const char* name) : symbol(name) {}  // NOLINT
  const char* symbol = nullptr;
  int64_t value = 0;
};

// Collects the first mismatch of one op call. Use:
//   ShapeCheck check("RmsNorm");
//   check.F32("x", p.x, {"rows", "dim"}).F32("out", p.out, {"rows", "dim"});
//   RETURN_IF_ERROR(check.status());
class ShapeCheck {
 public:
  // `device` is where F32's tensors must be.
  explicit ShapeCheck(const char* op, Device device = Device::kCpu) : op_(op), device_(device) {}

  // `t` has these dimensions, any dtype, its innermost dimension contiguous (all of them if it is
  // quantised) and is on `device`; `data` may be null only where the tensor has no elements.
  ShapeCheck& Tensor(const char* name, const TensorView& t, std::initializer_list<Dim> dims,
                     Device device = Device::kCpu);
  // The same with dtype float32.
  ShapeCheck& F32(const char* name, const TensorView& t, std::initializer_list<Dim> dims);
  // The same with dtype float32, or bf16 on a device.
  ShapeCheck& Activation(const char* name, const TensorView& t, std::initializer_list<Dim> dims);
  // As F32, where a null `data` means "absent".
  ShapeCheck& OptionalF32(const char* name, const TensorView& t, std::initializer_list<Dim> dims);
  // Binds a symbol, or checks it against what it is bound to.
  ShapeCheck& Bind(const char* symbol, int64_t value, const char* source);
  // Fails with `expectation` ("group divides heads") and the number that was got.
  ShapeCheck& That(bool ok, const char* expectation, int64_t got);

  int64_t Get(const char* symbol) const;
  bool ok() const { return ok_; }
  // INTERNAL naming op, expected and got; OK if all matched.
  absl::Status status() const;

 private:
  static constexpr int kMaxSymbols = 12;
  struct Binding {
    const char* symbol;
    int64_t value;
  };
  const Binding* Find(const char* symbol) const;
  void Fail(std::string message);

  const char* op_;
  Device device_;
  Binding bindings_[kMaxSymbols];
  int num_bindings_ = 0;
  bool ok_ = true;
  std::string message_;
};

}  // namespace longstride::kernels
