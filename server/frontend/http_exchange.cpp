#include "server/frontend/http_exchange.h"

#include <utility>

namespace longstride::frontend {

void HttpExchange::SignalLocked() {
  if (signal_) signal_();
}

void HttpExchange::Respond(HttpResponse response) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (answered_ || gone()) return;
  response_ = std::move(response);
  answered_ = true;
  SignalLocked();
}

void HttpExchange::Stream(HttpResponse head, std::unique_ptr<StreamSource> source,
                          StreamOptions options) {
  // A source that nobody will pull is destroyed here, outside the lock, which cancels its work.
  std::unique_ptr<StreamSource> dropped;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (answered_ || gone()) {
      dropped = std::move(source);
      return;
    }
    response_ = std::move(head);
    source_ = std::move(source);
    options_ = std::move(options);
    answered_ = true;
    SignalLocked();
  }
}

void HttpExchange::Wake() {
  if (wake_pending_.exchange(true, std::memory_order_acq_rel)) return;
  std::lock_guard<std::mutex> lock(mutex_);
  SignalLocked();
}

void HttpExchange::OnGone(std::function<void()> cancel) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!gone()) {
      cancel_ = std::move(cancel);
      return;
    }
  }
  cancel();
}

void HttpExchange::Abandon() {
  HttpResponse response;
  response.status = 500;
  response.body =
      R"({"error":{"message":"internal error: the request was dropped without an answer","type":)"
      R"("server_error","param":null,"code":null}})";
  Respond(std::move(response));
}

bool HttpExchange::answered() {
  std::lock_guard<std::mutex> lock(mutex_);
  return answered_;
}

HttpResponse HttpExchange::TakeResponse() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::move(response_);
}

std::unique_ptr<StreamSource> HttpExchange::TakeSource(StreamOptions* options) {
  std::lock_guard<std::mutex> lock(mutex_);
  *options = std::move(options_);
  return std::move(source_);
}

void HttpExchange::Detach(bool gone) {
  std::function<void()> cancel;
  std::function<void()> signal;
  std::unique_ptr<StreamSource> source;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (gone) {
      gone_.store(true, std::memory_order_release);
      cancel = std::move(cancel_);
    }
    cancel_ = nullptr;
    signal = std::move(signal_);
    signal_ = nullptr;
    source = std::move(source_);
  }
  if (cancel) cancel();
}

}  // namespace longstride::frontend
