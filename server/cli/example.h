#pragma once

#include <cstdint>
#include <string>

#include "config/server_config.h"
#include "model/model.h"

namespace longstride::cli {

// A curl line that works against this server, with a sentence around it.
std::string ExampleRequest(const ServerConfig& config, int32_t http_port,
                           const model::Model& model);

}  // namespace longstride::cli
