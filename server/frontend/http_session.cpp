#include "server/frontend/http_session.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "config/base/logging.h"
#include "config/base/strings.h"
#include "server/frontend/call_log.h"

namespace longstride::frontend {
namespace {

using std::chrono::steady_clock;

constexpr std::size_t kWriteSlice = 256 << 10;
constexpr std::size_t kBodyRead = 64 << 10;
constexpr std::size_t kIdleRead = 4 << 10;
// How much of a refused request's rest is read before the connection is cut: a peer that is still
// sending would otherwise see a reset instead of the answer.
constexpr int64_t kLingerBytes = int64_t{16} << 20;
constexpr auto kLingerTime = std::chrono::seconds(2);

steady_clock::duration ToChrono(absl::Duration d) {
  return std::chrono::duration_cast<steady_clock::duration>(absl::ToChronoNanoseconds(d));
}

std::string_view MethodLabel(std::string_view method) {
  for (const std::string_view known : {"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"}) {
    if (method == known) return known;
  }
  return "other";
}

}  // namespace

HttpSession::HttpSession(Strand strand, std::unique_ptr<HttpTransport> transport,
                         std::string remote_address, std::shared_ptr<HttpShared> shared)
    : strand_(strand),
      transport_(std::move(transport)),
      remote_address_(std::move(remote_address)),
      shared_(std::move(shared)),
      event_(strand),
      space_(strand),
      watch_(strand) {}

HttpSession::~HttpSession() { ReleaseBody(); }

void HttpSession::Start(std::function<void()> done) {
  auto self = shared_from_this();
  asio::co_spawn(
      strand_, [self]() { return self->Run(); },
      [self, done = std::move(done)](std::exception_ptr error) {
        if (error) Log(LogLevel::kError, "an HTTP connection ended by an exception");
        self->Close();
        done();
      });
}

void HttpSession::Shutdown(bool hard) {
  asio::post(strand_, [self = shared_from_this(), hard] {
    self->stopping_ = true;
    if (hard) self->Close();
    self->Signal();
  });
}

void HttpSession::Signal() {
  signalled_ = true;
  event_.cancel();
}

void HttpSession::Close() {
  if (closed_) return;
  closed_ = true;
  transport_->Close();
  space_.cancel();
  watch_.cancel();
  Signal();
}

void HttpSession::ReleaseBody() {
  shared_->body_bytes.fetch_sub(body_charged_);
  body_charged_ = 0;
}

asio::awaitable<void> HttpSession::WaitUntil(TimePoint deadline) {
  if (!signalled_) {
    error_code ignored;
    event_.expires_at(deadline);
    co_await event_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  signalled_ = false;
}

asio::awaitable<void> HttpSession::ReadLoop() {
  int64_t discarded = 0;
  while (!closed_) {
    const auto ahead = static_cast<int64_t>(pending_.size());
    if (!discard_ && ahead >= (answering_ ? shared_->limits.max_pipelined_bytes
                                          : static_cast<int64_t>(kBodyRead))) {
      error_code ignored;
      space_.expires_at(TimePoint::max());
      co_await space_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      continue;
    }
    const std::size_t n =
        co_await transport_->ReadSome(&pending_, reading_body_ ? kBodyRead : kIdleRead);
    if (n == 0) break;
    if (discard_) {
      discarded += static_cast<int64_t>(n);
      pending_.clear();
      if (discarded > kLingerBytes) break;
    } else {
      Signal();
    }
  }
  peer_done_ = true;
  reader_done_ = true;
  // Also ends a write to a client that left without having read.
  if (answering_) Close();
  Signal();
}

asio::awaitable<void> HttpSession::Run() {
  watch_.expires_after(ToChrono(shared_->limits.header_timeout));
  watch_.async_wait([weak = weak_from_this()](error_code ec) {
    if (auto self = weak.lock(); self && !ec) self->Close();
  });
  const bool shaken = co_await transport_->Handshake();
  watch_.cancel();
  if (!shaken || closed_) co_return;

  auto self = shared_from_this();
  asio::co_spawn(
      strand_, [self]() { return self->ReadLoop(); },
      [self](std::exception_ptr error) {
        self->peer_done_ = true;
        self->reader_done_ = true;
        self->Signal();
      });
  while (!closed_) {
    const bool more = co_await ServeOne();
    if (!more) break;
  }
  Close();
  while (!reader_done_) co_await WaitUntil(TimePoint::max());
}

asio::awaitable<bool> HttpSession::ServeOne() {
  auto parser = MakeHttpParser(shared_->limits.max_header_bytes, shared_->limits.max_body_bytes);
  const bool header_ok = co_await ReadHeader(parser.get());
  if (!header_ok) co_return false;
  auto request = std::make_unique<HttpRequest>(parser->TakeHead());
  request->remote_address = remote_address_;
  request->received = absl::Now();
  keep_alive_ = parser->keep_alive();
  http_1_1_ = parser->http_1_1();

  std::optional<HttpResponse> refusal = shared_->handler->Admit(request.get());
  if (refusal.has_value()) {
    const bool body_follows = !parser->message_done();
    if (!body_follows) {
      const bool written = co_await WriteResponse(*std::move(refusal), request->method);
      Report(*request, false, !written);
      co_return written&& keep_alive_;
    }
    co_await RefuseWith(*std::move(refusal), request->method);
    Report(*request, false, false);
    co_return false;
  }
  const bool body_ok = co_await ReadBody(parser.get(), request.get());
  if (!body_ok) {
    Report(*request, false, status_ == 0);
    co_return false;
  }
  parser.reset();

  // The head alone is kept for the report; the body belongs to the handler now.
  HttpRequest head;
  head.method = request->method;
  head.route = request->route;
  head.request_id = request->request_id;
  head.client = request->client;
  answering_ = true;
  if (pending_.empty()) std::string().swap(pending_);
  auto exchange = std::make_shared<HttpExchange>(
      [self = shared_from_this()] { asio::post(self->strand_, [self] { self->Signal(); }); });
  shared_->handler->Handle(std::move(request), std::make_shared<ExchangeSink>(exchange));

  const bool answered = co_await AwaitAnswer(exchange.get());
  bool written = false;
  bool streamed = false;
  if (answered) {
    HttpResponse response = exchange->TakeResponse();
    StreamOptions options;
    std::unique_ptr<StreamSource> source = exchange->TakeSource(&options);
    if (source == nullptr) {
      written = co_await WriteResponse(std::move(response), head.method);
    } else {
      streamed = true;
      status_ = response.status;
      const bool chunked = http_1_1_;
      if (!chunked || stopping_ || shared_->draining.load()) keep_alive_ = false;
      shared_->observer->StreamOpened(Transport::kHttp);
      const std::string text = FormatHead(response, keep_alive_, chunked, -1);
      written = co_await Write(text);
      if (written) written = co_await WriteStream(exchange.get(), source.get(), options, chunked);
      shared_->observer->StreamClosed(Transport::kHttp);
    }
  }
  exchange->Detach(!written);
  answering_ = false;
  ReleaseBody();
  space_.cancel();
  Report(head, streamed, !written);
  if (!written) co_return false;
  if (!keep_alive_) co_await Linger();
  co_return keep_alive_;
}

asio::awaitable<bool> HttpSession::ReadHeader(HttpParser* parser) {
  const auto idle_end = steady_clock::now() + ToChrono(shared_->limits.idle_timeout);
  status_ = 0;
  bytes_in_ = 0;
  bytes_out_ = 0;
  while (true) {
    // Empty lines before a request line are allowed (RFC 9112, 2.2).
    pending_.erase(0, std::min(pending_.find_first_not_of("\r\n"), pending_.size()));
    if (!pending_.empty()) break;
    if (peer_done_ || closed_ || stopping_ || steady_clock::now() >= idle_end) co_return false;
    co_await WaitUntil(idle_end);
  }
  request_start_ = steady_clock::now();
  const auto header_end = request_start_ + ToChrono(shared_->limits.header_timeout);
  while (true) {
    std::optional<HttpParseError> error;
    const std::size_t used = parser->Put(pending_, &error);
    bytes_in_ += static_cast<int64_t>(used);
    pending_.erase(0, used);
    if (!error.has_value() && !parser->header_done() &&
        static_cast<int64_t>(pending_.size()) > shared_->limits.max_header_bytes) {
      error = HttpParseError{431, StrCat("the request header is larger than ",
                                         shared_->limits.max_header_bytes, " bytes")};
    }
    if (!error.has_value() && !parser->header_done() && steady_clock::now() >= header_end) {
      error = HttpParseError{408, "the request header did not arrive in time"};
    }
    if (error.has_value()) {
      co_await Refuse(error->status, error->message);
      Report(HttpRequest(), false, false);
      co_return false;
    }
    if (parser->header_done()) break;
    if (peer_done_ || closed_) co_return false;
    co_await WaitUntil(header_end);
  }
  space_.cancel();
  co_return !closed_;
}

asio::awaitable<bool> HttpSession::ReadBody(HttpParser* parser, HttpRequest* request) {
  if (parser->message_done()) co_return true;
  if (parser->expects_continue() && pending_.empty()) {
    const bool written = co_await Write("HTTP/1.1 100 Continue\r\n\r\n");
    if (!written) co_return false;
  }
  reading_body_ = true;
  auto progress_end = steady_clock::now() + ToChrono(shared_->limits.body_timeout);
  while (true) {
    std::optional<HttpParseError> error;
    const std::size_t used = parser->Put(pending_, &error);
    bytes_in_ += static_cast<int64_t>(used);
    pending_.erase(0, used);
    space_.cancel();
    const int64_t growth = static_cast<int64_t>(parser->body_size()) - body_charged_;
    body_charged_ += growth;
    if (!error.has_value() &&
        shared_->body_bytes.fetch_add(growth) + growth > shared_->limits.max_total_body_bytes) {
      error = HttpParseError{503, "the server is receiving too many large requests at once; retry"};
    }
    if (!error.has_value() && used == 0 && pending_.size() >= kBodyRead) {
      error = HttpParseError{400, "malformed chunked body"};
    }
    if (error.has_value()) {
      reading_body_ = false;
      co_await Refuse(error->status, error->message);
      co_return false;
    }
    if (parser->message_done()) break;
    if (used > 0) {
      progress_end = steady_clock::now() + ToChrono(shared_->limits.body_timeout);
      if (!pending_.empty()) continue;
    }
    if (peer_done_ || closed_) co_return false;
    if (steady_clock::now() >= progress_end) {
      reading_body_ = false;
      co_await Refuse(408, "the request body did not arrive in time");
      co_return false;
    }
    co_await WaitUntil(progress_end);
  }
  reading_body_ = false;
  request->body = parser->TakeBody();
  co_return true;
}

asio::awaitable<bool> HttpSession::AwaitAnswer(HttpExchange* exchange) {
  while (!exchange->answered()) {
    if (peer_done_ || closed_) co_return false;
    co_await WaitUntil(TimePoint::max());
  }
  co_return !closed_;
}

asio::awaitable<bool> HttpSession::WriteStream(HttpExchange* exchange, StreamSource* source,
                                               const StreamOptions& options, bool chunked) {
  const bool pings = options.ping_interval < absl::Hours(24) && !options.ping.empty();
  const auto interval = pings ? ToChrono(options.ping_interval) : steady_clock::duration::zero();
  auto ping_at = pings ? steady_clock::now() + interval : TimePoint::max();
  std::string out;
  bool more = true;
  while (more) {
    if (peer_done_ || closed_) co_return false;
    exchange->ClearWake();
    more = source->Pull(&out);
    const auto now = steady_clock::now();
    if (out.empty() && more) {
      if (now < ping_at) {
        co_await WaitUntil(ping_at);
        continue;
      }
      out = options.ping;
    }
    if (chunked) {
      if (!out.empty()) {
        out.insert(0, StrCat(absl::Hex(out.size()), "\r\n"));
        out += "\r\n";
      }
      if (!more) out += "0\r\n\r\n";
    }
    const bool written = co_await Write(out);
    if (!written) co_return false;
    if (pings) ping_at = steady_clock::now() + interval;
    out.clear();
    if (out.capacity() > kBodyRead) std::string().swap(out);
  }
  co_return true;
}

asio::awaitable<bool> HttpSession::WriteResponse(HttpResponse response, std::string_view method) {
  if (stopping_ || shared_->draining.load()) keep_alive_ = false;
  status_ = response.status;
  std::string text =
      FormatHead(response, keep_alive_, false, static_cast<int64_t>(response.body.size()));
  if (method == "HEAD") {
    const bool written = co_await Write(text);
    co_return written;
  }
  if (response.body.size() <= kBodyRead) {
    text += response.body;
    const bool written = co_await Write(text);
    co_return written;
  }
  const bool head_written = co_await Write(text);
  if (!head_written) co_return false;
  const bool written = co_await Write(response.body);
  co_return written;
}

asio::awaitable<void> HttpSession::Refuse(int32_t status, std::string message) {
  HttpResponse response = shared_->handler->Refusal(status, message);
  co_await RefuseWith(std::move(response), "");
}

asio::awaitable<void> HttpSession::RefuseWith(HttpResponse response, std::string_view method) {
  keep_alive_ = false;
  const bool written = co_await WriteResponse(std::move(response), method);
  if (written) co_await Linger();
}

asio::awaitable<void> HttpSession::Linger() {
  discard_ = true;
  pending_.clear();
  space_.cancel();
  co_await transport_->FinishSending();
  const auto end = steady_clock::now() + kLingerTime;
  while (!peer_done_ && !closed_ && !stopping_ && steady_clock::now() < end) {
    co_await WaitUntil(end);
  }
}

asio::awaitable<bool> HttpSession::Write(std::string_view bytes) {
  while (!bytes.empty()) {
    if (closed_) co_return false;
    const std::string_view slice = bytes.substr(0, kWriteSlice);
    write_deadline_ = steady_clock::now() + ToChrono(shared_->limits.write_timeout);
    writing_ = true;
    if (!watching_) WatchWrites();
    const bool written = co_await transport_->Write(slice);
    writing_ = false;
    if (!written) co_return false;
    bytes_out_ += static_cast<int64_t>(slice.size());
    bytes.remove_prefix(slice.size());
  }
  co_return true;
}

// One timer for all writes of the connection: arming it for each chunk would cost more than the
// chunk.
void HttpSession::WatchWrites() {
  watching_ = true;
  watch_.expires_at(write_deadline_);
  watch_.async_wait([weak = weak_from_this()](error_code ec) {
    auto self = weak.lock();
    if (self == nullptr) return;
    self->watching_ = false;
    if (ec || !self->writing_) return;
    if (steady_clock::now() >= self->write_deadline_) {
      self->Close();
    } else {
      self->WatchWrites();
    }
  });
}

void HttpSession::Report(const HttpRequest& request, bool streamed, bool gone) {
  CallReport report;
  report.transport = Transport::kHttp;
  report.route = request.route;
  report.method = MethodLabel(request.method);
  report.status = status_ == 0 ? 499 : status_;
  report.seconds = std::chrono::duration<double>(steady_clock::now() - request_start_).count();
  report.request_bytes = bytes_in_;
  report.response_bytes = bytes_out_;
  report.streamed = streamed;
  report.client_gone = gone;
  shared_->observer->CallDone(report);
  LogCall(report, request.request_id, request.client);
}

}  // namespace longstride::frontend
