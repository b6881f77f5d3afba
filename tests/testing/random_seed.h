// A fresh seed per run, printed, so that a failure can be repeated with LONGSTRIDE_TEST_SEED.
#pragma once

#include <cstdlib>
#include <iostream>
#include <random>

namespace longstride::testing {

inline unsigned RandomSeed() {
  static const unsigned seed = [] {
    const char* given = std::getenv("LONGSTRIDE_TEST_SEED");
    const unsigned chosen =
        given != nullptr ? static_cast<unsigned>(std::atoll(given)) : std::random_device{}();
    std::cerr << "LONGSTRIDE_TEST_SEED=" << chosen << std::endl;
    return chosen;
  }();
  return seed;
}

}  // namespace longstride::testing
