// Bytes of a connection, as a client sends them. How they are cut into packets must not matter. The
// input's first byte is the size of the packets.
#include <optional>

#include "config/base/check.h"
#include "server/frontend/http_parser.h"
#include "tests/fuzz/fuzz_target.h"

namespace longstride::fuzz {
namespace {

constexpr int64_t kMaxHeader = 2048;
constexpr int64_t kMaxBody = 4096;

struct Outcome {
  int32_t status = 0;  // of the refusal; 0: none
  bool whole = false;
  size_t used = 0;  // bytes of whole requests
  std::string text;  // all that was understood
  bool operator==(const Outcome&) const = default;
};

// Reads requests, as a session does, until the input ends or is refused.
Outcome Read(std::string_view input, size_t packet) {
  Outcome outcome;
  std::string pending;
  auto parser = frontend::MakeHttpParser(kMaxHeader, kMaxBody);
  bool head_taken = false;
  size_t used = 0;
  for (size_t at = 0; at < input.size();) {
    pending += input.substr(at, packet);
    at += std::min(packet, input.size() - at);
    while (!pending.empty()) {
      std::optional<frontend::HttpParseError> error;
      const size_t taken = parser->Put(pending, &error);
      LS_CHECK_LE(taken, pending.size());
      pending.erase(0, taken);
      used += taken;
      if (error.has_value()) {
        LS_CHECK(!error->message.empty());
        outcome.status = error->status;
        return outcome;
      }
      if (parser->header_done() && !head_taken) {
        head_taken = true;
        const frontend::HttpRequest head = parser->TakeHead();
        outcome.text += head.method + " " + head.path + "?" + head.query + "\n";
        for (const auto& [name, value] : head.headers) outcome.text += name + ": " + value + "\n";
        if (!parser->message_done()) continue;
      }
      LS_CHECK_LE(parser->body_size(), static_cast<size_t>(kMaxBody));
      if (parser->message_done()) {
        outcome.text += parser->TakeBody() + "\n";
        outcome.used = used;
        outcome.whole = true;
        if (!parser->keep_alive()) return outcome;
        parser = frontend::MakeHttpParser(kMaxHeader, kMaxBody);
        head_taken = false;
        continue;
      }
      if (taken == 0) break;
    }
  }
  return outcome;
}

}  // namespace

void RunInput(std::string_view input) {
  InputParts parts(input);
  const size_t packet = 1 + parts.Byte() % 64;
  const Outcome whole = Read(parts.rest(), parts.rest().size() + 1);
  const Outcome cut = Read(parts.rest(), packet);
  if (whole.status == 0 && cut.status == 0) LS_CHECK(whole == cut);
}

std::vector<std::string> Seeds() {
  return {
      "\1GET /v1/models?limit=5 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n"
      "GET http://a/p%20ing HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
      "\7POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\nExpect: 100-continue\r\n"
      "\r\n{\"prompt\":\"hi\"}OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
      "\3POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nabcd\r\n"
      "A\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
      "\2GET / HTTP/1.1\r\nHost: a\r\nFolded: a\r\n b\r\nUpgrade: h2c\r\n\r\n",
  };
}

}  // namespace longstride::fuzz
