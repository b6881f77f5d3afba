#include "server/frontend/http_listener.h"

#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

#include "config/base/logging.h"
#include "server/frontend/asio.h"
#include "server/frontend/http_session.h"
#include "server/frontend/http_transport.h"

namespace longstride::frontend {
namespace {

constexpr auto kAcceptRetry = std::chrono::milliseconds(50);

class HttpListenerImpl final : public HttpListener {
 public:
  HttpListenerImpl(const HttpListenerOptions& options, HttpHandler* handler,
                   FrontendObserver* observer)
      : options_(options),
        shared_(std::make_shared<HttpShared>()),
        io_(options.threads),
        acceptor_(asio::make_strand(io_)),
        retry_(acceptor_.get_executor()),
        work_(asio::make_work_guard(io_)) {
    shared_->limits = options.limits;
    shared_->handler = handler;
    shared_->observer = observer;
  }

  ~HttpListenerImpl() override { Stop(absl::ZeroDuration()); }

  absl::Status Open() {
    if (!options_.tls_cert.empty() || !options_.tls_key.empty()) {
      if (options_.tls_cert.empty() || options_.tls_key.empty()) {
        return absl::InvalidArgumentError(
            "TLS on the HTTP port needs both a certificate and a key; only one of them is set");
      }
      ASSIGN_OR_RETURN(tls_, TlsContext::Load(options_.tls_cert, options_.tls_key));
    }
    if (options_.port < 0 || options_.port > 65535) {
      return absl::InvalidArgumentError(
          StrCat("HTTP port ", options_.port, " is not in 0 to 65535"));
    }
    error_code ec;
    const auto address =
        asio::ip::make_address(options_.host == "localhost" ? "127.0.0.1" : options_.host, ec);
    if (ec) {
      return absl::InvalidArgumentError(StrCat("HTTP host '", options_.host,
                                               "' is not an IP address; use for example 127.0.0.1, "
                                               "0.0.0.0 or ::"));
    }
    const tcp::endpoint endpoint(address, static_cast<std::uint16_t>(options_.port));
    acceptor_.open(endpoint.protocol(), ec);
    if (!ec) acceptor_.set_option(asio::socket_base::reuse_address(true), ec);
    if (!ec) acceptor_.bind(endpoint, ec);
    if (!ec) acceptor_.listen(options_.limits.listen_backlog, ec);
    if (ec) {
      return absl::UnavailableError(StrCat("cannot listen on HTTP port ", options_.port, " of ",
                                           options_.host, ": ", ec.message(),
                                           "; stop the other server or choose another port"));
    }
    port_ = acceptor_.local_endpoint().port();
    return absl::OkStatus();
  }

  void Start() {
    asio::post(acceptor_.get_executor(), [this] { Accept(); });
    for (int32_t i = 0; i < options_.threads; ++i) {
      threads_.emplace_back([this] { io_.run(); });
    }
  }

  int32_t port() const override { return port_; }

  void BeginDrain() override { shared_->draining.store(true); }

  int32_t active_connections() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int32_t>(sessions_.size());
  }

  void Stop(absl::Duration grace) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (stopped_) return;
      stopped_ = true;
    }
    shared_->draining.store(true);
    asio::post(acceptor_.get_executor(), [this] {
      error_code ignored;
      acceptor_.close(ignored);
      retry_.cancel();
    });
    ShutdownSessions(false);
    if (!WaitNoSessions(grace)) {
      ShutdownSessions(true);
      if (!WaitNoSessions(absl::Seconds(10))) {
        Log(LogLevel::kError, "HTTP connections did not close in time and were cut");
        io_.stop();
      }
    }
    work_.reset();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  using SessionList = std::list<std::shared_ptr<HttpSession>>;

  void Accept() {
    acceptor_.async_accept(asio::make_strand(io_), [this](error_code ec, auto socket) {
      if (ec == asio::error::operation_aborted || !acceptor_.is_open()) return;
      if (ec) {
        // Out of descriptors or memory: try again soon instead of spinning.
        retry_.expires_after(kAcceptRetry);
        retry_.async_wait([this](error_code timer_error) {
          if (!timer_error) Accept();
        });
        return;
      }
      Admit(std::move(socket));
      Accept();
    });
  }

  template <typename Socket>
  void Admit(Socket socket) {
    error_code ec;
    const auto peer = socket.remote_endpoint(ec);
    if (ec) return;
    socket.set_option(tcp::no_delay(true), ec);
    socket.set_option(asio::socket_base::keep_alive(true), ec);
    socket.set_option(asio::socket_base::send_buffer_size(options_.limits.send_buffer_bytes), ec);
    const HttpSession::Strand strand = asio::make_strand(io_);
    tcp::socket plain(strand, peer.protocol(), socket.release(ec));
    if (ec) return;

    std::unique_lock<std::mutex> lock(mutex_);
    const bool full = static_cast<int32_t>(sessions_.size()) >= options_.limits.max_connections;
    if (stopped_ || full) {
      lock.unlock();
      shared_->observer->ConnectionRefused(Transport::kHttp);
      if (tls_ == nullptr) RefuseConnection(std::move(plain));
      return;
    }
    auto transport =
        tls_ == nullptr ? MakePlainTransport(std::move(plain)) : tls_->Wrap(std::move(plain));
    auto session = std::make_shared<HttpSession>(strand, std::move(transport),
                                                 peer.address().to_string(), shared_);
    const auto place = sessions_.insert(sessions_.end(), session);
    lock.unlock();
    shared_->observer->ConnectionOpened(Transport::kHttp);
    session->Start([this, place] {
      shared_->observer->ConnectionClosed(Transport::kHttp);
      std::shared_ptr<HttpSession> last;  // destroyed after the lock
      std::lock_guard<std::mutex> done_lock(mutex_);
      last = std::move(*place);
      sessions_.erase(place);
      idle_.notify_all();
    });
  }

  void RefuseConnection(tcp::socket socket) {
    HttpResponse response = shared_->handler->Refusal(
        503, StrCat("the server has all of its ", options_.limits.max_connections,
                    " connections in use; retry"));
    std::string text =
        FormatHead(response, false, false, static_cast<int64_t>(response.body.size()));
    text += response.body;
    error_code ignored;
    socket.non_blocking(true, ignored);
    socket.write_some(asio::buffer(text), ignored);
    socket.shutdown(tcp::socket::shutdown_send, ignored);
  }

  void ShutdownSessions(bool hard) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& session : sessions_) session->Shutdown(hard);
  }

  bool WaitNoSessions(absl::Duration timeout) {
    std::unique_lock<std::mutex> lock(mutex_);
    return idle_.wait_for(lock, absl::ToChronoMilliseconds(timeout),
                          [this] { return sessions_.empty(); });
  }

  const HttpListenerOptions options_;
  const std::shared_ptr<HttpShared> shared_;
  std::unique_ptr<TlsContext> tls_;
  asio::io_context io_;
  tcp::acceptor acceptor_;
  asio::steady_timer retry_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::vector<std::thread> threads_;
  int32_t port_ = 0;
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  SessionList sessions_;
  bool stopped_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpListener>> StartHttpListener(const HttpListenerOptions& options,
                                                                HttpHandler* handler,
                                                                FrontendObserver* observer) {
  auto listener = std::make_unique<HttpListenerImpl>(options, handler, observer);
  RETURN_IF_ERROR(listener->Open());
  listener->Start();
  return listener;
}

}  // namespace longstride::frontend
