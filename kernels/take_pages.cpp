#include "kernels/take_pages.h"

#include <algorithm>
#include <vector>

#include "kernels/kv_selection.h"

namespace longstride::kernels {

void TakePagesByMass(std::span<const double> shares, int64_t sinks, int64_t tail_begin, double mass,
                     int32_t* list) {
  const auto pages = static_cast<int64_t>(shares.size());
  const auto share = [&](int64_t page) {
    const double x = shares[static_cast<size_t>(page)];
    return x > 0 ? x : 0.0;
  };
  std::vector<int32_t> others;
  int32_t* end = list;
  double taken = 0;
  for (int64_t page = 0; page < pages; ++page) {
    if (page < sinks || page >= tail_begin) {
      taken += share(page);
      *end++ = static_cast<int32_t>(page);
    } else {
      others.push_back(static_cast<int32_t>(page));
    }
  }
  std::stable_sort(others.begin(), others.end(),
                   [&](int32_t a, int32_t b) { return share(a) > share(b); });
  for (size_t n = 0; n < others.size() && (mass >= 1 || taken < mass); ++n) {
    taken += share(others[n]);
    *end++ = others[n];
  }
  std::sort(list, end);
  std::fill(end, list + pages, kNoEntry);
}

}  // namespace longstride::kernels
