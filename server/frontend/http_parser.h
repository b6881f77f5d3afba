// Incremental HTTP/1.x request parser (Beast's, behind a plain interface) with the checks on top
// that keep a proxy in front and this server from reading one byte stream as different requests.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "server/frontend/http_types.h"

namespace longstride::frontend {

struct HttpParseError {
  int32_t status = 400;
  std::string message;
};

class HttpParser {
 public:
  virtual ~HttpParser() = default;
  // Consumes a prefix of `bytes` and returns its length. Stops after the header; call on for the
  // body. 0 with no error: more bytes are needed.
  virtual std::size_t Put(std::string_view bytes, std::optional<HttpParseError>* error) = 0;
  virtual bool header_done() const = 0;
  virtual bool message_done() const = 0;

  // Valid once header_done().
  virtual HttpRequest TakeHead() = 0;
  virtual bool keep_alive() const = 0;
  virtual bool http_1_1() const = 0;
  virtual bool expects_continue() const = 0;

  virtual std::size_t body_size() const = 0;  // received so far
  virtual std::string TakeBody() = 0;
};

std::unique_ptr<HttpParser> MakeHttpParser(int64_t max_header_bytes, int64_t max_body_bytes);

// The path of a request target (origin form or absolute form), percent-decoded, and its query.
// False if it is malformed.
bool SplitTarget(std::string_view target, std::string* path, std::string* query);

}  // namespace longstride::frontend
