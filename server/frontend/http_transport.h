// A byte stream under an HTTP connection: plain TCP or TLS.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "config/base/status.h"
#include "server/frontend/asio.h"

namespace longstride::frontend {

// All calls on the connection's strand. One read and one write may be outstanding at a time.
class HttpTransport {
 public:
  virtual ~HttpTransport() = default;
  virtual asio::awaitable<bool> Handshake() = 0;
  // Waits for bytes and appends up to `max` of them; how many, 0 at end of stream or error. A plain
  // connection holds no buffer while it waits.
  virtual asio::awaitable<std::size_t> ReadSome(std::string* out, std::size_t max) = 0;
  // Writes all of it; false on error.
  virtual asio::awaitable<bool> Write(std::string_view bytes) = 0;
  // Ends the sending side (TLS: close_notify first), so that the peer gets all that was written.
  virtual asio::awaitable<void> FinishSending() = 0;
  // Ends pending operations. Idempotent.
  virtual void Close() = 0;
};

// TLS 1.2 or newer with the server's certificate chain and key (PEM files). Null options mean
// plain.
class TlsContext {
 public:
  virtual ~TlsContext() = default;
  // INVALID_ARGUMENT: a file cannot be read, or key and certificate do not belong together.
  static absl::StatusOr<std::unique_ptr<TlsContext>> Load(const std::string& cert_path,
                                                          const std::string& key_path);
  virtual std::unique_ptr<HttpTransport> Wrap(tcp::socket socket) = 0;
};

std::unique_ptr<HttpTransport> MakePlainTransport(tcp::socket socket);

}  // namespace longstride::frontend
