// Clients that leave at any moment: nothing may stay behind.
#include <random>
#include <thread>

#include "tests/frontend/server_fixture.h"

namespace longstride::testing {
namespace {

using Aborts = ServerTest;

TEST_F(Aborts, StormOnRestLeavesNothingBehind) {
  engine_.StartTicking(absl::Milliseconds(1));
  StartServer();
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(seed + t);
      for (int i = 0; i < 500; ++i) {
        RawClient client(port(), random() % 4 == 0 ? 2048 : 0);
        const bool stream = random() % 2 == 0;
        const std::string request =
            MakeRequest("POST", "/v1/completions",
                        std::string(R"({"prompt":"storm","max_tokens":100,"stream":)") +
                            (stream ? "true}" : "false}"));
        // Sometimes the request itself is cut short.
        client.Send(random() % 8 == 0 ? request.substr(0, random() % request.size()) : request);
        if (stream && random() % 2 == 0) client.ReadUntil("data:", 200);
        random() % 2 == 0 ? client.Close() : client.Reset();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(engine_.WaitLive(0));
  for (int i = 0; i < 500 && observer_.connections.load() != 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(observer_.connections.load(), 0);
  EXPECT_EQ(observer_.streams.load(), 0);
  EXPECT_EQ(Get("/ping").status, 200);
}

TEST_F(Aborts, StoppingTheServerInAStormIsClean) {
  engine_.StartTicking(absl::Milliseconds(1));
  StartServer();
  std::atomic<bool> stop{false};
  const int where = port();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      while (!stop.load()) {
        RawClient client(where);
        if (!client.connected()) continue;
        client.Send(MakeRequest("POST", "/v1/completions",
                                R"({"prompt":"storm","max_tokens":50,"stream":true})"));
        client.ReadUntil("data:", 50);
      }
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  http_->Stop(absl::Milliseconds(20));
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(engine_.WaitLive(0));
}

}  // namespace
}  // namespace longstride::testing
