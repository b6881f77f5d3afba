// A blocking HTTP client over a plain socket, for tests that send what no real client would.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace longstride::testing {

struct RawResponse {
  int status = 0;  // 0: no answer
  std::string head;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // unchunked
  bool complete = false;                       // the body ended as its framing says
};

class RawClient {
 public:
  // Connects to 127.0.0.1. `receive_buffer` > 0 sets SO_RCVBUF, to be a slow reader.
  explicit RawClient(int port, int receive_buffer = 0);
  ~RawClient() { Close(); }
  RawClient(const RawClient&) = delete;

  bool connected() const { return fd_ >= 0; }
  bool Send(std::string_view bytes);
  // Reads until `text` is in what was received or the time is over; what was received.
  const std::string& ReadUntil(std::string_view text, int timeout_ms = 10000);
  // One response with its body.
  RawResponse ReadResponse(int timeout_ms = 10000);
  // Whether the server closes the connection within the time.
  bool WaitClosed(int timeout_ms = 10000);
  void Close();
  // Closes with a reset instead of a FIN.
  void Reset();

 private:
  bool Receive(int timeout_ms);  // false: closed or timed out

  int fd_ = -1;
  bool closed_ = false;
  std::string buffer_;
};

std::string MakeRequest(std::string_view method, std::string_view path, std::string_view body = "",
                        std::string_view extra_headers = "");

// Connects, sends one request, reads the answer.
RawResponse Fetch(int port, std::string_view method, std::string_view path,
                  std::string_view body = "", std::string_view extra_headers = "");

// The payloads of "data: …" events, in order; comments are left out.
std::vector<std::string> SseData(std::string_view body);

}  // namespace longstride::testing
