#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "config/base/status.h"
#include "server/engine/engine.h"
#include "server/frontend/generation.h"

namespace longstride::frontend {

// One vector (an embedding, or the labels' scores) for each of many inputs: at most `window` of them are in the engine at a time, so that one
// large request neither overflows the queue nor crowds others out. Submits the first of them; the
// error of the very first is returned.
absl::StatusOr<std::unique_ptr<Generation>> StartVectors(
    GenerationInfo info, std::vector<engine::GenerationRequest> requests, int32_t window,
    engine::Engine* engine, std::function<void()> notify);

}  // namespace longstride::frontend
