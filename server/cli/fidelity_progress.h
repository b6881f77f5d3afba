#pragma once

#include <cstdint>
#include <string>

namespace longstride::cli {

// Says on stderr what is being computed and how far it is.
class FidelityProgress {
 public:
  FidelityProgress();
  void Update(const std::string& stage, int64_t done, int64_t total);
  void Finish();

 private:
  const bool terminal_;
  std::string stage_;
};

}  // namespace longstride::cli
