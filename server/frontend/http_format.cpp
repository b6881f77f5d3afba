#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "config/base/strings.h"
#include "server/frontend/http_session.h"

namespace longstride::frontend {
namespace {

std::string_view Reason(int32_t status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Status";
  }
}

// Header values are made of requests' bytes in places: nothing may end the line.
void AppendValue(std::string_view value, std::string* out) {
  for (const char c : value) {
    const auto u = static_cast<unsigned char>(c);
    out->push_back((u < 0x20 && c != '\t') || u == 0x7f ? ' ' : c);
  }
}

}  // namespace

std::string FormatHead(const HttpResponse& response, bool keep_alive, bool chunked,
                       int64_t content_length) {
  std::string out = StrCat("HTTP/1.1 ", response.status, " ", Reason(response.status), "\r\n");
  out += "Content-Type: ";
  AppendValue(response.content_type, &out);
  out +=
      absl::FormatTime("\r\nDate: %a, %d %b %Y %H:%M:%S GMT\r\n", absl::Now(), absl::UTCTimeZone());
  for (const auto& [name, value] : response.headers) {
    out += name;
    out += ": ";
    AppendValue(value, &out);
    out += "\r\n";
  }
  if (chunked) {
    out += "Transfer-Encoding: chunked\r\n";
  } else if (content_length >= 0) {
    StrAppend(&out, "Content-Length: ", content_length, "\r\n");
  }
  if (!keep_alive) out += "Connection: close\r\n";
  out += "\r\n";
  return out;
}

}  // namespace longstride::frontend
