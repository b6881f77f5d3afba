// What the front end tells the outside about its work; metrics implement it. Called from I/O and
// worker threads at once: implementations must be cheap and thread-safe.
#pragma once

#include <cstdint>
#include <string_view>

namespace longstride::frontend {

enum class Transport { kHttp, kGrpc };

// One finished call, whatever its outcome.
struct CallReport {
  Transport transport = Transport::kHttp;
  std::string_view route;   // from a fixed set: "/v1/completions", "Generate", "other"
  std::string_view method;  // HTTP: from a fixed set ("GET", "POST", "other"); gRPC: "rpc"
  int32_t status = 0;       // HTTP status or gRPC code
  double seconds = 0;       // first request byte to last response byte
  int64_t request_bytes = 0;
  int64_t response_bytes = 0;
  bool streamed = false;
  bool client_gone = false;  // the client left before the answer was complete
};

class FrontendObserver {
 public:
  virtual ~FrontendObserver() = default;
  virtual void ConnectionOpened(Transport transport) {}
  virtual void ConnectionClosed(Transport transport) {}
  virtual void ConnectionRefused(Transport transport) {}  // over the connection cap
  virtual void StreamOpened(Transport transport) {}
  virtual void StreamClosed(Transport transport) {}
  virtual void CallDone(const CallReport& report) {}
  // A stream that had already begun ended with an error event.
  virtual void StreamError(Transport transport, int32_t code) {}
  // Front-end time to format and hand over `tokens` streamed tokens (engine event to socket).
  virtual void TokensWritten(Transport transport, int64_t tokens, int64_t nanos) {}
  virtual void Tokenized(int64_t tokens, double seconds) {}  // render and tokenise of one request
  virtual void AuthenticationFailed(Transport transport) {}
  // The audit log (audit_log.h).
  virtual void AuditCommitted(int64_t records, double seconds) {}  // written and synced together
  virtual void AuditFailed() {}                                    // one attempt to do so
  virtual void AuditPending(int64_t records) {}
  virtual void AuditLost(int64_t records) {}
};

}  // namespace longstride::frontend
