#include "server/cli/http_client.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "config/nearest_name.h"
#include "server/cli/command.h"

namespace longstride::cli {
namespace {

constexpr size_t kMaxHeaderBytes = size_t{64} << 10;

absl::Status Broken(std::string_view what) {
  return WithExit(absl::UnavailableError(StrCat("The connection to the server ", what, ".")),
                  kExitAddress);
}

class Connection {
 public:
  ~Connection() {
    if (socket_ >= 0) close(socket_);
  }

  absl::Status Open(const ServerUrl& url, absl::Duration timeout) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (getaddrinfo(url.host.c_str(), url.port.c_str(), &hints, &found) != 0) {
      return Broken(StrCat("cannot be made: the host ", Quoted(url.host), " is unknown"));
    }
    for (const addrinfo* at = found; at != nullptr && socket_ < 0; at = at->ai_next) {
      socket_ = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (socket_ >= 0 && connect(socket_, at->ai_addr, at->ai_addrlen) != 0) {
        close(socket_);
        socket_ = -1;
      }
    }
    const int error = errno;
    freeaddrinfo(found);
    if (socket_ < 0) return Broken(StrCat("cannot be made: ", std::strerror(error)));
    const timeval wait = absl::ToTimeval(timeout);
    setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
    setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
    const int on = 1;
    setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    return absl::OkStatus();
  }

  absl::Status Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return Broken("broke while the request was sent");
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return absl::OkStatus();
  }

  // Appends what is there; false at the end of the stream.
  absl::StatusOr<bool> Receive(std::string* out) {
    char buffer[16384];
    const ssize_t got = recv(socket_, buffer, sizeof(buffer), 0);
    if (got < 0) return Broken("broke, or said nothing for too long");
    out->append(buffer, static_cast<size_t>(got));
    return got > 0;
  }

 private:
  int socket_ = -1;
};

struct Header {
  int status = 0;
  bool chunked = false;
  int64_t length = -1;  // -1: until the connection closes
};

absl::StatusOr<Header> ParseHeader(std::string_view text) {
  Header header;
  if (text.substr(0, 7) != "HTTP/1." || text.size() < 12 ||
      !absl::SimpleAtoi(std::string(text.substr(9, 3)), &header.status)) {
    return Broken("did not answer in HTTP/1");
  }
  for (size_t at = text.find("\r\n"); at != std::string_view::npos; at = text.find("\r\n", at)) {
    at += 2;
    const std::string line =
        absl::AsciiStrToLower(std::string(text.substr(at, text.find("\r\n", at) - at)));
    if (line.rfind("transfer-encoding:", 0) == 0) {
      header.chunked = line.find("chunked") != std::string::npos;
    } else if (line.rfind("content-length:", 0) == 0) {
      const std::string value(absl::StripAsciiWhitespace(line.substr(15)));
      if (!absl::SimpleAtoi(value, &header.length)) return Broken("sent a bad Content-Length");
    }
  }
  return header;
}

// Takes whole chunks off the front of `buffer`; true once the last one was seen.
absl::StatusOr<bool> TakeChunks(std::string* buffer,
                                const std::function<void(std::string_view)>& on_data) {
  while (true) {
    const size_t line_end = buffer->find("\r\n");
    if (line_end == std::string::npos) return false;
    uint32_t size = 0;
    const std::string digits = buffer->substr(0, std::min(line_end, buffer->find(';')));
    if (!absl::SimpleHexAtoi(digits, &size)) return Broken("sent a bad chunk");
    if (buffer->size() < line_end + 2 + size + 2) return false;
    if (size == 0) return true;
    on_data(std::string_view(*buffer).substr(line_end + 2, size));
    buffer->erase(0, line_end + 2 + size + 2);
  }
}

absl::Status ReadBody(Connection* connection, const Header& header, std::string buffer,
                      const std::function<void(std::string_view)>& on_data) {
  int64_t left = header.length;
  while (true) {
    if (header.chunked) {
      ASSIGN_OR_RETURN(const bool done, TakeChunks(&buffer, on_data));
      if (done) return absl::OkStatus();
    } else {
      on_data(buffer);
      left -= static_cast<int64_t>(buffer.size());
      buffer.clear();
      if (header.length >= 0 && left <= 0) return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const bool more, connection->Receive(&buffer));
    if (!more) {
      const bool complete = !header.chunked && header.length < 0;
      return complete ? absl::OkStatus() : Broken("closed before the answer was complete");
    }
  }
}

}  // namespace

absl::StatusOr<ServerUrl> ServerUrl::Parse(const std::string& text) {
  const std::string scheme = "http://";
  std::string rest = text;
  if (rest.rfind(scheme, 0) == 0) {
    rest.erase(0, scheme.size());
    while (!rest.empty() && rest.back() == '/') rest.pop_back();
    const size_t colon = rest.rfind(':');
    if (rest.find('/') == std::string::npos && colon != std::string::npos && colon > 0) {
      std::string host = rest.substr(0, colon);
      if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
      return ServerUrl{host, rest.substr(colon + 1)};
    }
  }
  return absl::InvalidArgumentError(
      StrCat("--url: got ", Quoted(text), "; allowed is http://HOST:PORT."));
}

absl::StatusOr<HttpAnswer> Fetch(const HttpCall& call,
                                 const std::function<void(std::string_view)>& on_data) {
  Connection connection;
  RETURN_IF_ERROR(connection.Open(call.url, call.timeout));
  std::string request =
      StrCat(call.method, " ", call.path, " HTTP/1.1\r\nHost: ", call.url.host, ":", call.url.port,
             "\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ",
             call.body.size(), "\r\n");
  if (!call.authorization.empty()) {
    StrAppend(&request, "Authorization: ", call.authorization, "\r\n");
  }
  StrAppend(&request, "\r\n", call.body);
  RETURN_IF_ERROR(connection.Send(request));

  std::string buffer;
  size_t end = std::string::npos;
  while (end == std::string::npos) {
    ASSIGN_OR_RETURN(const bool more, connection.Receive(&buffer));
    end = buffer.find("\r\n\r\n");
    if (end == std::string::npos && (!more || buffer.size() > kMaxHeaderBytes)) {
      return Broken("closed before it answered");
    }
  }
  ASSIGN_OR_RETURN(const Header header, ParseHeader(std::string_view(buffer).substr(0, end)));
  HttpAnswer answer;
  answer.status = header.status;
  const bool stream = on_data != nullptr && header.status == 200;
  const std::function<void(std::string_view)> collect = [&](std::string_view piece) {
    answer.body += piece;
  };
  RETURN_IF_ERROR(
      ReadBody(&connection, header, buffer.substr(end + 4), stream ? on_data : collect));
  return answer;
}

}  // namespace longstride::cli
