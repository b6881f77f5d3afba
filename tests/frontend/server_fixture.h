// A real server on free ports over a fake engine and the byte model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "config/base/clock.h"
#include "server/frontend/grpc_server.h"
#include "server/frontend/http_server.h"
#include "server/frontend/inference_service.h"
#include "tests/frontend/byte_model.h"
#include "tests/frontend/raw_client.h"
#include "tests/testing/fake_engine.h"

namespace longstride::testing {

// Counts what the front end reports.
class CountingObserver : public frontend::FrontendObserver {
 public:
  void ConnectionOpened(frontend::Transport) override { ++connections; }
  void ConnectionClosed(frontend::Transport) override { --connections; }
  void ConnectionRefused(frontend::Transport) override { ++refused; }
  void StreamOpened(frontend::Transport) override { ++streams; }
  void StreamClosed(frontend::Transport) override { --streams; }
  void CallDone(const frontend::CallReport& report) override {
    std::lock_guard<std::mutex> lock(mutex);
    calls.push_back(report);
  }
  void StreamError(frontend::Transport, int32_t) override { ++stream_errors; }
  void TokensWritten(frontend::Transport, int64_t count, int64_t) override { tokens += count; }
  void AuthenticationFailed(frontend::Transport) override { ++denied; }

  std::atomic<int> connections{0};
  std::atomic<int> refused{0};
  std::atomic<int> streams{0};
  std::atomic<int> stream_errors{0};
  std::atomic<int64_t> tokens{0};
  std::atomic<int> denied{0};
  std::mutex mutex;
  std::vector<frontend::CallReport> calls;
};

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() : tokenizer_(MakeByteTokenizer()), served_(MakeByteModel(tokenizer_.get())) {}
  ~ServerTest() override { StopAll(); }

  // Tests change http_options_, service_options_, served_ before.
  void StartServer(bool with_model = true, frontend::AuditLog* audit = nullptr) {
    service_ = std::make_unique<frontend::InferenceService>(service_options_, Clock::Real(),
                                                            &observer_, audit);
    if (with_model) service_->SetModel(served_, &engine_);
    http_options_.port = 0;
    auto started = frontend::StartHttpServer(
        http_options_, service_.get(), [] { return std::string("up 1\n"); }, &observer_);
    ASSERT_TRUE(started.ok()) << started.status();
    http_ = *std::move(started);
  }
  void StartGrpc() {
    grpc_options_.port = 0;
    auto started = frontend::StartGrpcServer(grpc_options_, service_.get(), &observer_);
    ASSERT_TRUE(started.ok()) << started.status();
    grpc_ = *std::move(started);
  }
  void StopAll() {
    if (http_ != nullptr) http_->Stop(absl::ZeroDuration());
    if (grpc_ != nullptr) grpc_->Stop(absl::ZeroDuration());
    if (service_ != nullptr) service_->Stop();
    http_.reset();
    grpc_.reset();
    service_.reset();
  }

  int port() const { return http_->port(); }
  RawResponse Post(std::string_view path, const nlohmann::json& body,
                   std::string_view headers = "") {
    return Fetch(port(), "POST", path, body.dump(), headers);
  }
  RawResponse Get(std::string_view path, std::string_view headers = "") {
    return Fetch(port(), "GET", path, "", headers);
  }
  static nlohmann::json Json(const RawResponse& response) {
    return nlohmann::json::parse(response.body, nullptr, false);
  }
  // Chunks of a finished stream without the final "[DONE]", whose presence is checked.
  static std::vector<nlohmann::json> Chunks(const RawResponse& response) {
    std::vector<nlohmann::json> out;
    const std::vector<std::string> data = SseData(response.body);
    EXPECT_FALSE(data.empty());
    if (data.empty()) return out;
    EXPECT_EQ(data.back(), "[DONE]");
    for (std::size_t i = 0; i + 1 < data.size(); ++i) {
      out.push_back(nlohmann::json::parse(data[i], nullptr, false));
      EXPECT_FALSE(out.back().is_discarded()) << data[i];
    }
    return out;
  }
  void AnswerWith(std::vector<std::string> words,
                  engine::FinishReason reason = engine::FinishReason::kStop) {
    engine_.set_script([words, reason](const engine::GenerationRequest& request) {
      return Answer(request, words, reason);
    });
  }

  std::unique_ptr<model::Tokenizer> tokenizer_;
  frontend::ServedModel served_;
  FakeEngine engine_;
  CountingObserver observer_;
  frontend::ServiceOptions service_options_;
  frontend::HttpServerOptions http_options_;
  frontend::GrpcServerOptions grpc_options_;
  std::unique_ptr<frontend::InferenceService> service_;
  std::unique_ptr<frontend::HttpServer> http_;
  std::unique_ptr<frontend::GrpcServer> grpc_;
};

}  // namespace longstride::testing
