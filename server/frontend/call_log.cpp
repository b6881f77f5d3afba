#include "server/frontend/call_log.h"

#include "config/base/logging.h"

namespace longstride::frontend {

void LogCall(const CallReport& report, std::string_view request_id, std::string_view client) {
  const bool probe = report.route.starts_with("/health") || report.route == "/ping" ||
                     report.route == "/metrics" || report.route == "GetServerInfo";
  Log(probe ? LogLevel::kDebug : LogLevel::kInfo, "call",
      {{"transport", report.transport == Transport::kHttp ? "http" : "grpc"},
       {"route", report.route},
       {"status", report.status},
       {"seconds", report.seconds},
       {"request_bytes", report.request_bytes},
       {"response_bytes", report.response_bytes},
       {"streamed", report.streamed},
       {"client_gone", report.client_gone},
       {"client", client},
       {"request_id", request_id}});
}

}  // namespace longstride::frontend
