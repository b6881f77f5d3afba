// Bytes on the wire that no honest client sends, and the limits of connections.
#include <chrono>
#include <thread>

#include "tests/frontend/server_fixture.h"

namespace longstride::testing {
namespace {

using HttpListener = ServerTest;

RawResponse SendRaw(int port, std::string_view bytes) {
  RawClient client(port);
  client.Send(bytes);
  return client.ReadResponse();
}

TEST_F(HttpListener, RefusesTwoHostHeaders) {
  StartServer();
  EXPECT_EQ(SendRaw(port(), "GET /ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").status, 400);
}

TEST_F(HttpListener, RefusesMissingHost) {
  StartServer();
  EXPECT_EQ(SendRaw(port(), "GET /ping HTTP/1.1\r\n\r\n").status, 400);
}

TEST_F(HttpListener, RefusesContentLengthWithChunked) {
  StartServer();
  const RawResponse response =
      SendRaw(port(),
              "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: "
              "chunked\r\n\r\n0\r\n\r\n");
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(Json(response)["error"]["type"], "invalid_request_error");
}

TEST_F(HttpListener, RefusesTwoContentLengths) {
  StartServer();
  for (const char* second : {"5", "6"}) {
    EXPECT_EQ(SendRaw(port(), std::string("POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
                                          "Content-Length: 5\r\nContent-Length: ") +
                                  second + "\r\n\r\n{}   ")
                  .status,
              400);
  }
}

TEST_F(HttpListener, RefusesOtherTransferEncodings) {
  StartServer();
  const int status = SendRaw(port(),
                             "POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: "
                             "gzip, chunked\r\n\r\n0\r\n\r\n")
                         .status;
  EXPECT_TRUE(status == 501 || status == 400) << status;
}

TEST_F(HttpListener, RefusesBrokenRequestLines) {
  StartServer();
  for (const char* line :
       {"GET\r\n\r\n", "GET /ping HTTP/3.0\r\nHost: a\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /pi ng HTTP/1.1\r\nHost: a\r\n\r\n"}) {
    const int status = SendRaw(port(), line).status;
    EXPECT_TRUE(status == 400 || status == 505) << line << ": " << status;
  }
}

TEST_F(HttpListener, RefusesTooLargeHeader) {
  StartServer();
  RawClient client(port());
  client.Send("GET /ping HTTP/1.1\r\nHost: a\r\nX-Long: " + std::string(40000, 'x') + "\r\n\r\n");
  EXPECT_EQ(client.ReadResponse().status, 431);
}

TEST_F(HttpListener, RefusesTooLargeBodyBeforeItIsSent) {
  http_options_.limits.max_body_bytes = 1000;
  StartServer();
  RawClient client(port());
  client.Send(
      "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\nExpect: "
      "100-continue\r\n\r\n");
  const RawResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 413);
  EXPECT_EQ(response.head.find("100 Continue"), std::string::npos);
}

TEST_F(HttpListener, RefusesChunkedBodyOverTheLimit) {
  http_options_.limits.max_body_bytes = 1000;
  StartServer();
  RawClient client(port());
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 3; ++i) client.Send("190\r\n" + std::string(400, ' ') + "\r\n");
  EXPECT_EQ(client.ReadResponse().status, 413);
}

TEST_F(HttpListener, ReadsChunkedBodyInOneBytePieces) {
  AnswerWith({"ok"});
  StartServer();
  RawClient client(port());
  const std::string body = R"({"prompt":"hi"})";
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (const char c : body) client.Send(std::string("1\r\n") + c + "\r\n");
  client.Send("0\r\nHost: smuggled\r\n\r\n");
  const RawResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(Json(response)["choices"][0]["text"], "ok");
}

TEST_F(HttpListener, AnswersExpectBeforeTheBody) {
  AnswerWith({"ok"});
  StartServer();
  RawClient client(port());
  client.Send(
      "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\nExpect: "
      "100-continue\r\n\r\n");
  EXPECT_NE(client.ReadUntil("100 Continue").find("100 Continue"), std::string::npos);
  client.Send(R"({"prompt":"hi"})");
  EXPECT_EQ(client.ReadResponse().status, 200);
}

TEST_F(HttpListener, RefusesOtherExpectations) {
  StartServer();
  EXPECT_EQ(SendRaw(port(), "GET /ping HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n").status,
            417);
}

TEST_F(HttpListener, ChecksKeyAndPathBeforeTheBody) {
  StartServer();
  RawClient client(port());
  client.Send("POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n");
  EXPECT_EQ(client.ReadResponse().status, 404);
  EXPECT_TRUE(client.WaitClosed());
}

TEST_F(HttpListener, CutsHeaderThatTrickles) {
  http_options_.limits.header_timeout = absl::Milliseconds(300);
  StartServer();
  RawClient client(port());
  const std::string header = "GET /ping HTTP/1.1\r\nHost: a\r\nX-Slow: ";
  client.Send(header);
  bool open = true;
  for (int i = 0; i < 100 && open; ++i) {
    open = client.Send("x");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    if (!client.ReadUntil("408", 0).empty()) break;
  }
  EXPECT_EQ(client.ReadResponse().status, 408);
}

TEST_F(HttpListener, CutsBodyThatStops) {
  http_options_.limits.body_timeout = absl::Milliseconds(200);
  StartServer();
  RawClient client(port());
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{");
  EXPECT_EQ(client.ReadResponse().status, 408);
}

TEST_F(HttpListener, ClosesIdleConnections) {
  http_options_.limits.idle_timeout = absl::Milliseconds(200);
  StartServer();
  RawClient client(port());
  client.Send(MakeRequest("GET", "/ping"));
  EXPECT_EQ(client.ReadResponse().status, 200);
  EXPECT_TRUE(client.WaitClosed());
}

TEST_F(HttpListener, AnswersPipelinedRequestsInOrder) {
  StartServer();
  RawClient client(port());
  client.Send(MakeRequest("GET", "/ping") + MakeRequest("GET", "/version") +
              MakeRequest("GET", "/nowhere"));
  EXPECT_EQ(client.ReadResponse().status, 200);
  EXPECT_EQ(Json(client.ReadResponse())["name"], "longstride");
  EXPECT_EQ(client.ReadResponse().status, 404);
}

TEST_F(HttpListener, KeepsPipelinedBytesBoundedDuringAStream) {
  http_options_.limits.max_pipelined_bytes = 4096;
  StartServer();
  RawClient client(port());
  client.Send(MakeRequest("POST", "/v1/completions", R"({"prompt":"a","stream":true})"));
  const auto request = engine_.WaitRequest(0);
  ASSERT_NE(request, nullptr);
  std::thread flood([&] { client.Send(std::string(4 << 20, 'x')); });
  request->Push(Answer(request->request(), {"done"}));
  EXPECT_NE(client.ReadUntil("[DONE]").find("[DONE]"), std::string::npos);
  client.ReadUntil("400");
  client.WaitClosed();
  flood.join();
}

TEST_F(HttpListener, RefusesConnectionsOverTheCap) {
  http_options_.limits.max_connections = 2;
  StartServer();
  RawClient first(port());
  RawClient second(port());
  first.Send(MakeRequest("GET", "/ping"));
  EXPECT_EQ(first.ReadResponse().status, 200);
  second.Send(MakeRequest("GET", "/ping"));
  EXPECT_EQ(second.ReadResponse().status, 200);
  RawClient third(port());
  const RawResponse refused = third.ReadResponse();
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.count("retry-after"), 1u);
  EXPECT_EQ(observer_.refused.load(), 1);
}

TEST_F(HttpListener, BoundsAllBodiesTogether) {
  http_options_.limits.max_total_body_bytes = 3000;
  StartServer();
  RawClient first(port());
  first.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2500\r\n\r\n" +
             std::string(2000, ' '));
  // The first connection's bytes are counted as they come.
  int status = 0;
  for (int i = 0; i < 50 && status != 503; ++i) {
    status = Fetch(port(), "POST", "/v1/completions", std::string(2000, ' ')).status;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(status, 503);
  first.Close();
  for (int i = 0; i < 50 && status != 400; ++i) {
    status = Fetch(port(), "POST", "/v1/completions", std::string(2000, ' ')).status;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(status, 400);  // only blanks: no JSON, but read again
}

TEST_F(HttpListener, AnswersHttp10AndCloses) {
  AnswerWith({"a", "b"});
  StartServer();
  RawClient client(port());
  client.Send(
      "POST /v1/completions HTTP/1.0\r\nContent-Length: 31\r\n\r\n"
      R"({"prompt":"hi","stream":true})"
      "  ");
  const RawResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.headers.count("transfer-encoding"), 0u);
  EXPECT_EQ(SseData(response.body).back(), "[DONE]");
}

TEST_F(HttpListener, HeadHasNoBody) {
  StartServer();
  RawClient client(port());
  client.Send("HEAD /ping HTTP/1.1\r\nHost: a\r\n\r\nGET /version HTTP/1.1\r\nHost: a\r\n\r\n");
  const std::string& text = client.ReadUntil("longstride");
  EXPECT_EQ(text.find("ready"), std::string::npos);
  EXPECT_NE(text.find("longstride"), std::string::npos);
}

TEST_F(HttpListener, WrongMethodNamesTheRightOne) {
  StartServer();
  const RawResponse response = Get("/v1/completions");
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.headers.at("allow"), "POST");
}

TEST_F(HttpListener, PortInUseIsAClearError) {
  StartServer();
  frontend::HttpServerOptions again = http_options_;
  again.port = port();
  const auto second = frontend::StartHttpServer(
      again, service_.get(), [] { return std::string(); }, &observer_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(second.status().message().find(std::to_string(port())), absl::string_view::npos);
}

TEST_F(HttpListener, StopsWithinGraceWhileAStreamRuns) {
  StartServer();
  RawClient client(port());
  client.Send(MakeRequest("POST", "/v1/completions", R"({"prompt":"a","stream":true})"));
  const auto request = engine_.WaitRequest(0);
  ASSERT_NE(request, nullptr);
  client.ReadUntil("200 OK");
  std::thread stopper([&] { http_->Stop(absl::Seconds(20)); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  request->Push(Answer(request->request(), {"end"}));
  const std::string& text = client.ReadUntil("[DONE]");
  EXPECT_NE(text.find("[DONE]"), std::string::npos);
  stopper.join();
  RawClient late(port());
  EXPECT_FALSE(late.connected() && late.ReadResponse(200).status != 0);
}

TEST_F(HttpListener, StopCutsStreamsAfterGrace) {
  StartServer();
  RawClient client(port());
  client.Send(MakeRequest("POST", "/v1/completions", R"({"prompt":"a","stream":true})"));
  ASSERT_NE(engine_.WaitRequest(0), nullptr);
  client.ReadUntil("200 OK");
  http_->Stop(absl::Milliseconds(50));
  EXPECT_TRUE(client.WaitClosed());
  EXPECT_TRUE(engine_.WaitLive(0));
}

}  // namespace
}  // namespace longstride::testing
