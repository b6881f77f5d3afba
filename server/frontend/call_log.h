#pragma once

#include <string_view>

#include "server/frontend/observer.h"

namespace longstride::frontend {

// One log line per finished call: who, what, how it ended. Probes and scrapes at debug level.
void LogCall(const CallReport& report, std::string_view request_id, std::string_view client);

}  // namespace longstride::frontend
