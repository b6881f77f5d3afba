#include "kernels/cpu/cpu_backend.h"

#include <system_error>

#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/cpu_info.h"

namespace longstride::kernels {
namespace cpu {
namespace {

constexpr int kMaxThreads = 1024;

struct Isa {
  const char* name;
  const CpuKernels* kernels;
  bool usable;
};

// Best first.
std::vector<Isa> Isas() {
  const CpuFeatures f = DetectCpuFeatures();
  return {{"avx512vnni", Avx512VnniKernels(), f.avx512_vnni},
          {"avxvnni", AvxVnniKernels(), f.avx_vnni},
          {"avx2", Avx2Kernels(), f.avx2},
          {"portable", PortableKernels(), true}};
}

absl::StatusOr<const CpuKernels*> ChooseIsa(const std::string& wanted) {
  std::string usable;
  for (const Isa& isa : Isas()) {
    const bool can_run = isa.kernels != nullptr && isa.usable;
    if (can_run && (wanted.empty() || wanted == isa.name)) return isa.kernels;
    if (can_run) StrAppend(&usable, usable.empty() ? "" : ", ", isa.name);
  }
  return absl::InvalidArgumentError(StrCat("Instruction set \"", wanted,
                                           "\" is unknown or not offered by this processor; use "
                                           "one of: ",
                                           usable, "."));
}

}  // namespace

CpuBackend::CpuBackend(const CpuKernels& kernels, int num_threads)
    : kernels_(kernels),
      pool_(num_threads),
      thread_scratch_(num_threads),
      attention_plan_(std::make_unique<AttentionPlan>()) {}

CpuBackend::~CpuBackend() = default;

std::string CpuBackend::Describe() const {
  const int threads = pool_.num_threads();
  return StrCat("cpu (", kernels_.name, ", ", threads, threads == 1 ? " thread)" : " threads)");
}

}  // namespace cpu

absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const BackendOptions& options) {
  if (options.num_threads < 0 || options.num_threads > cpu::kMaxThreads) {
    return absl::InvalidArgumentError(StrCat("The number of compute threads is ",
                                             options.num_threads,
                                             "; it must be from 0 (one per "
                                             "physical core) to ",
                                             cpu::kMaxThreads, "."));
  }
  ASSIGN_OR_RETURN(const cpu::CpuKernels* kernels, cpu::ChooseIsa(options.isa));
  const int threads = options.num_threads > 0 ? options.num_threads : cpu::AvailablePhysicalCores();
  try {
    return std::make_unique<cpu::CpuBackend>(*kernels, threads);
  } catch (const std::system_error&) {
    return absl::ResourceExhaustedError(
        StrCat("The system refused to start ", threads, " compute threads; use fewer."));
  }
}

}  // namespace longstride::kernels
