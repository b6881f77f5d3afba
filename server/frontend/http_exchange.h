// The answer of one request on its way from the handler's threads to the connection's.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "server/frontend/http_types.h"

namespace longstride::frontend {

// Shared by the session and the sink that the handler holds. Thread-safe.
class HttpExchange {
 public:
  // `signal` wakes the session's coroutine; it may be called from any thread until Detach.
  explicit HttpExchange(std::function<void()> signal) : signal_(std::move(signal)) {}

  // Handler side.
  void Respond(HttpResponse response);
  void Stream(HttpResponse head, std::unique_ptr<StreamSource> source, StreamOptions options);
  void Wake();
  void OnGone(std::function<void()> cancel);
  bool gone() const { return gone_.load(std::memory_order_acquire); }
  void Abandon();  // the handler dropped the sink

  // Session side.
  bool answered();
  HttpResponse TakeResponse();
  std::unique_ptr<StreamSource> TakeSource(StreamOptions* options);  // null: a whole response
  void ClearWake() { wake_pending_.store(false, std::memory_order_release); }
  // The answer is complete, or (gone) the client left: runs the cancel function, drops what waits.
  void Detach(bool gone);

 private:
  void SignalLocked();

  std::atomic<bool> gone_{false};
  std::atomic<bool> wake_pending_{false};
  std::mutex mutex_;
  std::function<void()> signal_;
  std::function<void()> cancel_;
  bool answered_ = false;
  HttpResponse response_;
  std::unique_ptr<StreamSource> source_;
  StreamOptions options_;
};

// What the handler holds.
class ExchangeSink final : public ResponseSink {
 public:
  explicit ExchangeSink(std::shared_ptr<HttpExchange> exchange) : exchange_(std::move(exchange)) {}
  ~ExchangeSink() override { exchange_->Abandon(); }
  void Respond(HttpResponse response) override { exchange_->Respond(std::move(response)); }
  void Stream(HttpResponse head, std::unique_ptr<StreamSource> source,
              StreamOptions options) override {
    exchange_->Stream(std::move(head), std::move(source), std::move(options));
  }
  void Wake() override { exchange_->Wake(); }
  void OnGone(std::function<void()> cancel) override { exchange_->OnGone(std::move(cancel)); }
  bool gone() const override { return exchange_->gone(); }

 private:
  const std::shared_ptr<HttpExchange> exchange_;
};

}  // namespace longstride::frontend
