// Runs a target under libFuzzer.
#include <filesystem>
#include <fstream>

#include "tests/fuzz/fuzz_target.h"

// The seeds join the corpus in the first folder that the command line names.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  for (int i = 1; i < *argc; ++i) {
    const std::filesystem::path folder = (*argv)[i];
    if (!std::filesystem::is_directory(folder)) continue;
    int number = 0;
    for (const std::string& seed : longstride::fuzz::Seeds()) {
      std::ofstream out(folder / ("seed-" + std::to_string(number++)), std::ios::binary);
      out.write(seed.data(), static_cast<std::streamsize>(seed.size()));
    }
    break;
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  longstride::fuzz::RunInput({reinterpret_cast<const char*>(data), size});
  return 0;
}
