// One connection: reads requests, hands them to the handler, writes answers and streams. A reader
// coroutine always waits for bytes, so that a client's departure is noticed at once in every state;
// the main coroutine parses what it brought and waits on one timer that serves as an event.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "server/frontend/asio.h"
#include "server/frontend/http_exchange.h"
#include "server/frontend/http_listener.h"
#include "server/frontend/http_parser.h"
#include "server/frontend/http_transport.h"
#include "server/frontend/http_types.h"

namespace longstride::frontend {

// What all sessions of a listener share. Thread-safe where not constant.
struct HttpShared {
  HttpLimits limits;
  HttpHandler* handler = nullptr;
  FrontendObserver* observer = nullptr;
  std::atomic<bool> draining{false};
  std::atomic<int64_t> body_bytes{0};
};

class HttpSession : public std::enable_shared_from_this<HttpSession> {
 public:
  using Strand = asio::strand<asio::io_context::executor_type>;
  using TimePoint = std::chrono::steady_clock::time_point;

  HttpSession(Strand strand, std::unique_ptr<HttpTransport> transport, std::string remote_address,
              std::shared_ptr<HttpShared> shared);
  ~HttpSession();

  // `done` runs once, on the strand, when the connection is closed and nothing of it runs any more.
  void Start(std::function<void()> done);
  // Ends the session: between requests at once, during an answer only when `hard`. Any thread.
  void Shutdown(bool hard);

 private:
  asio::awaitable<void> Run();
  asio::awaitable<void> ReadLoop();
  // One request and its answer; false: the connection must end.
  asio::awaitable<bool> ServeOne();
  asio::awaitable<bool> ReadHeader(HttpParser* parser);
  asio::awaitable<bool> ReadBody(HttpParser* parser, HttpRequest* request);
  asio::awaitable<bool> AwaitAnswer(HttpExchange* exchange);
  asio::awaitable<bool> WriteStream(HttpExchange* exchange, StreamSource* source,
                                    const StreamOptions& options, bool chunked);
  asio::awaitable<bool> WriteResponse(HttpResponse response, std::string_view method);
  asio::awaitable<void> Refuse(int32_t status, std::string message);
  asio::awaitable<void> RefuseWith(HttpResponse response, std::string_view method);
  asio::awaitable<void> Linger();
  asio::awaitable<bool> Write(std::string_view bytes);
  asio::awaitable<void> WaitUntil(TimePoint deadline);
  void WatchWrites();
  void Signal();
  void Close();
  void Report(const HttpRequest& request, bool streamed, bool gone);
  void ReleaseBody();

  Strand strand_;
  std::unique_ptr<HttpTransport> transport_;
  const std::string remote_address_;
  const std::shared_ptr<HttpShared> shared_;

  asio::steady_timer event_;  // the main coroutine waits here
  asio::steady_timer space_;  // the reader waits here while enough is read ahead
  asio::steady_timer watch_;  // cuts a write that makes no progress
  TimePoint write_deadline_{};
  bool writing_ = false;
  bool watching_ = false;
  bool signalled_ = false;
  bool peer_done_ = false;  // end of stream or a read error
  bool closed_ = false;
  bool stopping_ = false;  // end after the answer under way
  bool discard_ = false;   // the reader throws away what comes
  bool reading_body_ = false;
  bool answering_ = false;
  bool reader_done_ = false;
  bool keep_alive_ = false;  // of the request under way
  bool http_1_1_ = true;
  std::string pending_;  // read and not yet parsed
  TimePoint request_start_{};
  int32_t status_ = 0;    // of the answer under way
  int64_t bytes_in_ = 0;  // of the request under way
  int64_t bytes_out_ = 0;
  int64_t body_charged_ = 0;  // of HttpShared::body_bytes
};

// "HTTP/1.1 200 OK\r\n…\r\n\r\n" without body.
std::string FormatHead(const HttpResponse& response, bool keep_alive, bool chunked,
                       int64_t content_length);

}  // namespace longstride::frontend
