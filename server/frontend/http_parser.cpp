#include "server/frontend/http_parser.h"

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "config/base/status.h"

namespace longstride::frontend {
namespace {

namespace http = boost::beast::http;

HttpParseError Describe(const boost::system::error_code& ec, int64_t max_header, int64_t max_body) {
  if (ec == http::error::body_limit) {
    return {413, StrCat("the request body is larger than ", max_body,
                        " bytes; send a shorter prompt or raise the server's body limit")};
  }
  if (ec == http::error::header_limit) {
    return {431, StrCat("the request header is larger than ", max_header, " bytes")};
  }
  if (ec == http::error::bad_version) return {505, "only HTTP/1.0 and HTTP/1.1 are served here"};
  return {400, StrCat("malformed HTTP request: ", ec.message())};
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

class BeastParser final : public HttpParser {
 public:
  BeastParser(int64_t max_header_bytes, int64_t max_body_bytes)
      : max_header_(max_header_bytes), max_body_(max_body_bytes) {
    parser_.header_limit(static_cast<std::uint32_t>(max_header_bytes));
    parser_.body_limit(static_cast<std::uint64_t>(max_body_bytes));
  }

  std::size_t Put(std::string_view bytes, std::optional<HttpParseError>* error) override {
    const bool header_was_done = parser_.is_header_done();
    parser_.eager(header_was_done);
    boost::system::error_code ec;
    std::size_t used = 0;
    try {
      used = parser_.put(boost::asio::const_buffer(bytes.data(), bytes.size()), ec);
    } catch (const std::exception&) {
      *error = HttpParseError{503, "out of memory while reading the request"};
      return 0;
    }
    if (ec == http::error::need_more) ec = {};
    if (ec) {
      *error = Describe(ec, max_header_, max_body_);
      return used;
    }
    if (!header_was_done && parser_.is_header_done()) *error = CheckHeader();
    return used;
  }

  bool header_done() const override { return parser_.is_header_done(); }
  bool message_done() const override { return parser_.is_done(); }
  bool keep_alive() const override { return parser_.keep_alive(); }
  bool http_1_1() const override { return parser_.get().version() >= 11; }
  bool expects_continue() const override { return expects_continue_; }
  std::size_t body_size() const override { return parser_.get().body().size(); }
  std::string TakeBody() override { return std::move(parser_.get().body()); }

  HttpRequest TakeHead() override { return std::move(head_); }

 private:
  // Copies the header out and refuses what a proxy might read differently (RFC 9112, 6.3 and 3.2).
  std::optional<HttpParseError> CheckHeader() {
    const auto& message = parser_.get();
    int hosts = 0;
    int lengths = 0;
    int encodings = 0;
    for (const auto& field : message) {
      std::string name(field.name_string().data(), field.name_string().size());
      absl::AsciiStrToLower(&name);
      std::string value(field.value().data(), field.value().size());
      if (name == "host") ++hosts;
      if (name == "content-length") ++lengths;
      if (name == "transfer-encoding") {
        ++encodings;
        if (!absl::EqualsIgnoreCase(value, "chunked")) {
          return HttpParseError{501, "the only Transfer-Encoding served here is chunked"};
        }
      }
      if (name == "expect") {
        if (!absl::EqualsIgnoreCase(value, "100-continue")) {
          return HttpParseError{417, "the only expectation served here is 100-continue"};
        }
        expects_continue_ = http_1_1();
      }
      head_.headers.emplace_back(std::move(name), std::move(value));
    }
    if (hosts > 1) return HttpParseError{400, "the request has more than one Host header"};
    if (hosts == 0 && http_1_1()) return HttpParseError{400, "the request has no Host header"};
    if (lengths > 1 || encodings > 1 || (lengths > 0 && encodings > 0)) {
      return HttpParseError{400,
                            "the request states its length more than once (Content-Length and "
                            "Transfer-Encoding); send one of them, once"};
    }
    head_.method.assign(message.method_string().data(), message.method_string().size());
    const std::string_view target(message.target().data(), message.target().size());
    if (!SplitTarget(target, &head_.path, &head_.query)) {
      return HttpParseError{400, "malformed request target"};
    }
    return std::nullopt;
  }

  const int64_t max_header_;
  const int64_t max_body_;
  http::request_parser<http::string_body> parser_;
  HttpRequest head_;
  bool expects_continue_ = false;
};

}  // namespace

bool SplitTarget(std::string_view target, std::string* path, std::string* query) {
  const std::size_t scheme = target.find("://");
  if (!target.empty() && target[0] != '/' && scheme != std::string_view::npos) {
    const std::size_t slash = target.find('/', scheme + 3);
    target = slash == std::string_view::npos ? std::string_view("/") : target.substr(slash);
  }
  if (target == "*") {
    path->assign(1, '*');
    query->clear();
    return true;
  }
  if (target.empty() || target[0] != '/') return false;
  const std::size_t mark = target.find('?');
  if (mark != std::string_view::npos) {
    query->assign(target.substr(mark + 1));
    target = target.substr(0, mark);
  }
  path->clear();
  for (std::size_t i = 0; i < target.size(); ++i) {
    char c = target[i];
    if (c == '%') {
      if (i + 2 >= target.size()) return false;
      const int high = HexValue(target[i + 1]);
      const int low = HexValue(target[i + 2]);
      if (high < 0 || low < 0) return false;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return false;
    path->push_back(c);
  }
  return true;
}

std::unique_ptr<HttpParser> MakeHttpParser(int64_t max_header_bytes, int64_t max_body_bytes) {
  return std::make_unique<BeastParser>(max_header_bytes, max_body_bytes);
}

}  // namespace longstride::frontend
