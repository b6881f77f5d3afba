// Conformance of server-sent events: what SDKs and proxies rely on.
#include <chrono>
#include <thread>

#include "tests/frontend/server_fixture.h"

namespace longstride::testing {
namespace {

using nlohmann::json;
using Stream = ServerTest;

json Body(json extra = json::object()) {
  json body = {{"prompt", "hi"}, {"stream", true}};
  body.update(extra);
  return body;
}

TEST_F(Stream, HasHeadersDeltasFinishAndDone) {
  AnswerWith({"one ", "two"});
  StartServer();
  const RawResponse response = Post("/v1/completions", Body());
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(response.complete);
  EXPECT_EQ(response.headers.at("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(response.headers.at("cache-control"), "no-cache");
  EXPECT_EQ(response.headers.at("x-accel-buffering"), "no");
  const std::vector<json> chunks = Chunks(response);
  ASSERT_EQ(chunks.size(), 3u);
  for (const json& chunk : chunks) {
    EXPECT_EQ(chunk["id"], chunks[0]["id"]);
    EXPECT_EQ(chunk["created"], chunks[0]["created"]);
    EXPECT_EQ(chunk["model"], "bytes");
    EXPECT_EQ(chunk["object"], "text_completion");
    EXPECT_FALSE(chunk.contains("usage"));
  }
  EXPECT_EQ(chunks[0]["choices"][0]["text"], "one ");
  EXPECT_TRUE(chunks[0]["choices"][0]["finish_reason"].is_null());
  EXPECT_EQ(chunks[1]["choices"][0]["text"], "two");
  EXPECT_EQ(chunks[2]["choices"][0]["finish_reason"], "stop");
}

TEST_F(Stream, UsageComesLastWithEmptyChoices) {
  AnswerWith({"x"}, engine::FinishReason::kLength);
  StartServer();
  const auto chunks =
      Chunks(Post("/v1/completions", Body({{"stream_options", {{"include_usage", true}}}})));
  ASSERT_EQ(chunks.size(), 3u);
  EXPECT_TRUE(chunks[0]["usage"].is_null());
  EXPECT_TRUE(chunks[0].contains("usage"));
  EXPECT_EQ(chunks[1]["choices"][0]["finish_reason"], "length");
  EXPECT_TRUE(chunks[2]["choices"].is_array());
  EXPECT_TRUE(chunks[2]["choices"].empty());
  EXPECT_EQ(chunks[2]["usage"]["completion_tokens"], 1);
}

TEST_F(Stream, ContinuousUsageCountsUp) {
  AnswerWith({"a", "b"});
  StartServer();
  const auto chunks = Chunks(Post(
      "/v1/completions",
      Body({{"stream_options", {{"include_usage", true}, {"continuous_usage_stats", true}}}})));
  EXPECT_EQ(chunks[0]["usage"]["completion_tokens"], 1);
  EXPECT_EQ(chunks[1]["usage"]["completion_tokens"], 2);
  EXPECT_EQ(chunks[1]["usage"]["prompt_tokens"], 2);
}

TEST_F(Stream, HeadersComeWhileTheRequestIsQueuedAndPingsFollow) {
  http_options_.rest.ping_interval = absl::Milliseconds(50);
  StartServer();
  RawClient client(port());
  client.Send(MakeRequest("POST", "/v1/completions", Body().dump()));
  const std::string& text = client.ReadUntil(": ping\n\n\r\n");
  EXPECT_NE(text.find("200 OK"), std::string::npos);
  EXPECT_NE(text.find(": ping"), std::string::npos);
  EXPECT_EQ(text.find("data:"), std::string::npos);
  const auto request = engine_.WaitRequest(0);
  request->Push(Answer(request->request(), {"x"}));
  const RawResponse response = client.ReadResponse();
  EXPECT_EQ(Chunks(response).size(), 2u);
}

TEST_F(Stream, ValidationAnswersBeforeTheFirstByte) {
  StartServer();
  const RawResponse response = Post("/v1/completions", Body({{"temperature", -1}}));
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.headers.at("content-type"), "application/json");
  EXPECT_EQ(Json(response)["error"]["param"], "temperature");
}

TEST_F(Stream, FullQueueAnswersBeforeTheFirstByte) {
  StartServer();
  engine_.set_submit_error(absl::ResourceExhaustedError("the queue is full"));
  const RawResponse response = Post("/v1/completions", Body());
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(response.headers.count("retry-after"), 1u);
}

TEST_F(Stream, ErrorAfterTheFirstByteEndsWithErrorAndDone) {
  engine_.set_script([](const engine::GenerationRequest& request) {
    return std::vector<engine::OutputEvent>{
        DeltaEvent("par", 'p'), EndEvent(request, 1, absl::InternalError("the logits are NaN"))};
  });
  StartServer();
  const RawResponse response = Post("/v1/completions", Body());
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(response.complete);
  const auto chunks = Chunks(response);
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(chunks[1]["error"]["message"], "the logits are NaN");
  EXPECT_EQ(chunks[1]["error"]["type"], "server_error");
  EXPECT_EQ(observer_.stream_errors.load(), 1);
}

TEST_F(Stream, InterleavesChoicesByIndex) {
  AnswerWith({"a", "b"});
  StartServer();
  const auto chunks = Chunks(Post("/v1/completions", Body({{"n", 3}})));
  std::map<int, std::string> texts;
  std::map<int, int> finishes;
  for (const json& chunk : chunks) {
    const json& choice = chunk["choices"][0];
    texts[choice["index"]] += choice["text"].get<std::string>();
    finishes[choice["index"]] += choice["finish_reason"].is_null() ? 0 : 1;
  }
  EXPECT_EQ(texts, (std::map<int, std::string>{{0, "ab"}, {1, "ab"}, {2, "ab"}}));
  EXPECT_EQ(finishes, (std::map<int, int>{{0, 1}, {1, 1}, {2, 1}}));
}

TEST_F(Stream, ProgressOnlyWhenAskedInChunksWithoutChoices) {
  engine_.set_script([](const engine::GenerationRequest& request) {
    auto events = Answer(request, {"x"});
    engine::OutputEvent progress;
    progress.kind = engine::OutputEvent::Kind::kProgress;
    progress.processed_tokens = 1;
    events.insert(events.begin(), progress);
    return events;
  });
  StartServer();
  EXPECT_EQ(Chunks(Post("/v1/completions", Body())).size(), 2u);
  EXPECT_EQ(engine_.requests().at(0)->request().progress_interval_tokens, 0);
  const auto chunks = Chunks(Post("/v1/completions", Body({{"return_progress", true}})));
  ASSERT_EQ(chunks.size(), 3u);
  EXPECT_TRUE(chunks[0]["choices"].empty());
  EXPECT_EQ(chunks[0]["prompt_progress"]["processed"], 1);
  EXPECT_EQ(chunks[0]["prompt_progress"]["total"], 2);
  EXPECT_GT(engine_.requests().at(1)->request().progress_interval_tokens, 0);
}

TEST_F(Stream, EchoComesFirst) {
  AnswerWith({"x"});
  StartServer();
  const auto chunks = Chunks(Post("/v1/completions", Body({{"echo", true}})));
  EXPECT_EQ(chunks[0]["choices"][0]["text"], "hi");
  EXPECT_EQ(chunks[1]["choices"][0]["text"], "x");
}

TEST_F(Stream, LogprobsComeWithTheirDelta) {
  AnswerWith({"a", "b"});
  StartServer();
  const auto chunks = Chunks(Post("/v1/completions", Body({{"logprobs", 0}})));
  EXPECT_EQ(chunks[0]["choices"][0]["logprobs"]["tokens"], json{"a"});
  EXPECT_EQ(chunks[1]["choices"][0]["logprobs"]["text_offset"], json{1});
}

TEST_F(Stream, TextIsEscapedAndInvalidUtf8Replaced) {
  AnswerWith({"quote\" back\\ line\n tab\t \x01 \xC3\xA9 \xF0\x9F\x98\x80", "\xFF\xC3"});
  StartServer();
  const auto chunks = Chunks(Post("/v1/completions", Body()));
  EXPECT_EQ(chunks[0]["choices"][0]["text"],
            "quote\" back\\ line\n tab\t \x01 \xC3\xA9 \xF0\x9F\x98\x80");
  EXPECT_EQ(chunks[1]["choices"][0]["text"], "\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST_F(Stream, ConnectionServesTheNextRequestAfterAStream) {
  AnswerWith({"x"});
  StartServer();
  RawClient client(port());
  for (int i = 0; i < 3; ++i) {
    client.Send(MakeRequest("POST", "/v1/completions", Body().dump()));
    EXPECT_EQ(Chunks(client.ReadResponse()).size(), 2u);
  }
}

TEST_F(Stream, DisconnectIsNoticedWhileQueued) {
  StartServer();
  RawClient client(port());
  client.Send(MakeRequest("POST", "/v1/completions", Body().dump()));
  const auto request = engine_.WaitRequest(0);
  ASSERT_NE(request, nullptr);
  client.Close();
  EXPECT_TRUE(engine_.WaitLive(0));
  EXPECT_TRUE(request->cancelled());
}

TEST_F(Stream, SlowReaderIsNotPulledForAndIsCutInTheEnd) {
  http_options_.limits.write_timeout = absl::Milliseconds(300);
  http_options_.limits.send_buffer_bytes = 8192;
  StartServer();
  RawClient client(port(), 4096);
  client.Send(MakeRequest("POST", "/v1/completions", Body().dump()));
  const auto request = engine_.WaitRequest(0);
  ASSERT_NE(request, nullptr);
  // Far more than the socket's buffers hold, in one piece and then some.
  request->Push({DeltaEvent(std::string(4 << 20, 'x'), 'x')});
  request->Push({DeltaEvent("more", 'm')});
  EXPECT_TRUE(engine_.WaitLive(0));
  EXPECT_TRUE(request->cancelled());
}

TEST_F(Stream, ReportsStreamsAndTokens) {
  AnswerWith({"a", "b", "c"});
  StartServer();
  Post("/v1/completions", Body());
  for (int i = 0; i < 100 && observer_.streams.load() != 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(observer_.streams.load(), 0);
  EXPECT_EQ(observer_.tokens.load(), 3);
  std::lock_guard<std::mutex> lock(observer_.mutex);
  ASSERT_EQ(observer_.calls.size(), 1u);
  EXPECT_EQ(observer_.calls[0].route, "/v1/completions");
  EXPECT_EQ(observer_.calls[0].status, 200);
  EXPECT_TRUE(observer_.calls[0].streamed);
  EXPECT_GT(observer_.calls[0].response_bytes, 100);
}

}  // namespace
}  // namespace longstride::testing
