#include "tests/frontend/raw_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

namespace longstride::testing {
namespace {

using std::chrono::steady_clock;

int LeftMs(steady_clock::time_point end) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(end - steady_clock::now()).count();
  return left > 0 ? static_cast<int>(left) : 0;
}

}  // namespace

RawClient::RawClient(int port, int receive_buffer) {
  fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (receive_buffer > 0) {
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) Close();
}

void RawClient::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void RawClient::Reset() {
  const linger now{.l_onoff = 1, .l_linger = 0};
  setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
  Close();
}

bool RawClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

bool RawClient::Receive(int timeout_ms) {
  pollfd entry{.fd = fd_, .events = POLLIN, .revents = 0};
  if (fd_ < 0 || closed_ || poll(&entry, 1, timeout_ms) <= 0) return false;
  char chunk[16384];
  const ssize_t n = recv(fd_, chunk, sizeof(chunk), 0);
  if (n <= 0) {
    closed_ = true;
    return false;
  }
  buffer_.append(chunk, static_cast<std::size_t>(n));
  return true;
}

const std::string& RawClient::ReadUntil(std::string_view text, int timeout_ms) {
  const auto end = steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (buffer_.find(text) == std::string::npos && Receive(LeftMs(end))) {
  }
  return buffer_;
}

bool RawClient::WaitClosed(int timeout_ms) {
  const auto end = steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (!closed_ && LeftMs(end) > 0) Receive(LeftMs(end));
  return closed_;
}

RawResponse RawClient::ReadResponse(int timeout_ms) {
  const auto end = steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  RawResponse response;
  ReadUntil("\r\n\r\n", timeout_ms);
  const std::size_t split = buffer_.find("\r\n\r\n");
  if (split == std::string::npos) return response;
  response.head = buffer_.substr(0, split + 2);
  buffer_.erase(0, split + 4);
  response.status = std::atoi(response.head.c_str() + 9);
  std::size_t line = response.head.find("\r\n") + 2;
  while (line < response.head.size()) {
    const std::size_t stop = response.head.find("\r\n", line);
    const std::size_t colon = response.head.find(':', line);
    std::string name = response.head.substr(line, colon - line);
    std::transform(name.begin(), name.end(), name.begin(), ::tolower);
    response.headers[name] = response.head.substr(colon + 2, stop - colon - 2);
    line = stop + 2;
  }
  if (response.status == 100) return ReadResponse(LeftMs(end));
  if (response.headers.count("content-length") > 0) {
    const auto size =
        static_cast<std::size_t>(std::atoll(response.headers["content-length"].c_str()));
    while (buffer_.size() < size && Receive(LeftMs(end))) {
    }
    response.complete = buffer_.size() >= size;
    response.body = buffer_.substr(0, size);
    buffer_.erase(0, std::min(size, buffer_.size()));
  } else if (const auto coding = response.headers.find("transfer-encoding");
             coding != response.headers.end() && coding->second == "chunked") {
    while (true) {
      std::size_t eol;
      while ((eol = buffer_.find("\r\n")) == std::string::npos && Receive(LeftMs(end))) {
      }
      if (eol == std::string::npos) break;
      const std::size_t size = std::strtoull(buffer_.c_str(), nullptr, 16);
      while (buffer_.size() < eol + 2 + size + 2 && Receive(LeftMs(end))) {
      }
      if (buffer_.size() < eol + 2 + size + 2) break;
      response.body += buffer_.substr(eol + 2, size);
      buffer_.erase(0, eol + 2 + size + 2);
      if (size == 0) {
        response.complete = true;
        break;
      }
    }
  } else {
    while (Receive(LeftMs(end))) {
    }
    response.body = std::move(buffer_);
    buffer_.clear();
    response.complete = closed_;
  }
  return response;
}

std::string MakeRequest(std::string_view method, std::string_view path, std::string_view body,
                        std::string_view extra_headers) {
  std::string out(method);
  out += " ";
  out += path;
  out += " HTTP/1.1\r\nHost: test\r\n";
  out += extra_headers;
  if (!body.empty()) {
    out +=
        "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
  }
  out += "\r\n";
  out += body;
  return out;
}

RawResponse Fetch(int port, std::string_view method, std::string_view path, std::string_view body,
                  std::string_view extra_headers) {
  RawClient client(port);
  client.Send(MakeRequest(method, path, body, extra_headers));
  return client.ReadResponse();
}

std::vector<std::string> SseData(std::string_view body) {
  std::vector<std::string> out;
  while (!body.empty()) {
    const std::size_t end = std::min(body.find("\n\n"), body.size());
    const std::string_view event = body.substr(0, end);
    if (event.substr(0, 6) == "data: ") out.emplace_back(event.substr(6));
    body.remove_prefix(std::min(end + 2, body.size()));
  }
  return out;
}

}  // namespace longstride::testing
