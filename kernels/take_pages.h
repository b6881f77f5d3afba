// The pages that a list takes by their share of a tile's attention (SelectPagesParams::mass), for
// backends that compute in host memory.
#pragma once

#include <cstdint>
#include <span>

namespace longstride::kernels {

// Writes `list` [shares.size()]: the pages below `sinks` and from `tail_begin` on, and the best of the
// others, of equals the lower page, while the shares taken sum to less than `mass` (all, where that is 1);
// ascending, then kNoEntry. A share that is not a number counts as none.
void TakePagesByMass(std::span<const double> shares, int64_t sinks, int64_t tail_begin, double mass,
                     int32_t* list);

}  // namespace longstride::kernels
