#include <fstream>

#include "server/frontend/api_keys.h"
#include "tests/frontend/server_fixture.h"

namespace longstride::testing {
namespace {

using nlohmann::json;
using RestApi = ServerTest;

TEST_F(RestApi, NothingIsReadyBeforeTheModelIs) {
  StartServer(false);
  for (const char* path : {"/v1/models", "/health", "/health/ready", "/ping"}) {
    const RawResponse response = Get(path);
    EXPECT_EQ(response.status, 503) << path;
    EXPECT_EQ(response.headers.count("retry-after"), 1u);
  }
  EXPECT_EQ(Post("/v1/completions", {{"prompt", "x"}}).status, 503);
  EXPECT_EQ(Get("/health/live").status, 200);
  EXPECT_EQ(Get("/metrics").status, 200);
  service_->SetModel(MakeByteModel(tokenizer_.get()), &engine_);
  EXPECT_EQ(Get("/v1/models").status, 200);
  EXPECT_EQ(Get("/health/ready").status, 200);
}

TEST_F(RestApi, DrainRefusesNewWorkAndStaysLive) {
  AnswerWith({"x"});
  StartServer();
  service_->BeginDrain();
  http_->BeginDrain();
  EXPECT_EQ(Post("/v1/completions", {{"prompt", "x"}}).status, 503);
  EXPECT_EQ(Get("/v1/models").status, 503);
  EXPECT_EQ(Get("/health/live").status, 200);
  EXPECT_EQ(Get("/health/live").headers.at("connection"), "close");
}

TEST_F(RestApi, FailureIsTold) {
  StartServer(false);
  service_->SetFailed("the checkpoint is truncated");
  const RawResponse response = Get("/health");
  EXPECT_EQ(response.status, 503);
  EXPECT_NE(response.body.find("truncated"), std::string::npos);
}

TEST_F(RestApi, ModelsTellLimitsAndDigests) {
  StartServer();
  const json model = Json(Get("/v1/models"))["data"][0];
  EXPECT_EQ(model["id"], "bytes");
  EXPECT_EQ(model["object"], "model");
  EXPECT_EQ(model["max_model_len"], 512);
  EXPECT_EQ(model["model_digest"], "0123456789abcdef");
  EXPECT_EQ(model["sparsity"]["digest"], "fedcba9876543210");
  EXPECT_EQ(Json(Get("/v1/models/bytes")), model);
}

TEST_F(RestApi, MakesUpARequestIdUnlessAGoodOneIsSent) {
  StartServer();
  EXPECT_TRUE(Get("/ping").headers.at("x-request-id").starts_with("req-"));
  EXPECT_EQ(Get("/ping", "X-Request-Id: mine\r\n").headers.at("x-request-id"), "mine");
  EXPECT_TRUE(Get("/ping", "X-Request-Id: " + std::string(200, 'x') + "\r\n")
                  .headers.at("x-request-id")
                  .starts_with("req-"));
}

TEST_F(RestApi, TokenizesInBothDialects) {
  StartServer();
  const json vllm = Json(Post("/tokenize", {{"prompt", "ab"}, {"model", "bytes"}}));
  EXPECT_EQ(vllm["tokens"], (json{97, 98}));
  EXPECT_EQ(vllm["count"], 2);
  EXPECT_EQ(vllm["max_model_len"], 512);
  const json llama = Json(
      Post("/tokenize", {{"content", "a<|eos|>"}, {"with_pieces", true}, {"parse_special", true}}));
  EXPECT_EQ(llama["tokens"][0], (json{{"id", 97}, {"piece", "a"}}));
  EXPECT_EQ(llama["tokens"][1]["id"], kEos);
  const json back = Json(Post("/detokenize", {{"tokens", {97, 98}}}));
  EXPECT_EQ(back["prompt"], "ab");
  EXPECT_EQ(back["content"], "ab");
}

TEST_F(RestApi, PlaygroundLoadsNothingFromElsewhere) {
  StartServer();
  const RawResponse page = Get("/");
  EXPECT_EQ(page.status, 200);
  EXPECT_EQ(page.headers.at("content-type"), "text/html; charset=utf-8");
  EXPECT_NE(page.headers.at("content-security-policy").find("default-src 'none'"),
            std::string::npos);
  EXPECT_NE(page.body.find("<!doctype html>"), std::string::npos);
  EXPECT_EQ(page.body.find("https://"), std::string::npos);
  EXPECT_EQ(page.body.find("src=\"//"), std::string::npos);
}

class KeyedRestApi : public ServerTest {
 protected:
  KeyedRestApi() : path_(::testing::TempDir() + "/longstride_keys_test") {
    std::ofstream out(path_);
    out << "# keys\nalice:" << frontend::HashApiKey("alpha-key")
        << "\n\n  bob:" << frontend::HashApiKey("beta-key") << "  # second\n";
    out.close();
    http_options_.api_key_file = path_;
    grpc_options_.api_key_file = path_;
  }
  ~KeyedRestApi() override { std::remove(path_.c_str()); }
  const std::string path_;
};

TEST_F(KeyedRestApi, EveryPathButProbesAndThePageAsksForAKey) {
  AnswerWith({"x"});
  StartServer();
  for (const char* path : {"/v1/models", "/metrics", "/version", "/nowhere",
                           "/longstride/attention_map", "/v1/chat/completions"}) {
    const RawResponse response = Get(path);
    EXPECT_EQ(response.status, 401) << path;
    EXPECT_EQ(response.headers.at("www-authenticate"), "Bearer");
  }
  for (const char* path : {"/health", "/health/live", "/health/ready", "/ping", "/"}) {
    EXPECT_EQ(Get(path).status, 200) << path;
  }
  EXPECT_EQ(Get("/v1/models", "Authorization: Bearer wrong\r\n").status, 401);
  EXPECT_EQ(Get("/v1/models", "Authorization: Basic alpha-key\r\n").status, 401);
  EXPECT_EQ(Get("/v1/models", "Authorization: Bearer\r\n").status, 401);
  EXPECT_EQ(Get("/v1/models", "Authorization: bearer alpha-key\r\n").status, 200);
  EXPECT_GT(observer_.denied.load(), 5);
}

TEST_F(KeyedRestApi, TheKeysNameIsTheClientAndSeparatesPrefixes) {
  AnswerWith({"x"});
  StartServer();
  Post("/v1/completions", {{"prompt", "a"}},
       "Authorization: Bearer alpha-key\r\nx-longstride-client: eve\r\n");
  Post("/v1/completions", {{"prompt", "a"}}, "Authorization: Bearer beta-key\r\n");
  const auto requests = engine_.requests();
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_EQ(requests[0]->request().client, "alice");
  EXPECT_EQ(requests[1]->request().client, "bob");
  EXPECT_NE(requests[0]->request().cache_salt, requests[1]->request().cache_salt);
}

TEST(ApiKeys, RefusesMalformedFiles) {
  const std::string hash = frontend::HashApiKey("k");
  for (const std::string& text :
       {std::string(), std::string("# only a comment\n"), std::string("alice\n"),
        "alice:" + hash.substr(1) + "\n", ":" + hash + "\n", "a b:" + hash + "\n",
        "a:" + hash + "\na:" + hash + "\n", "a:" + std::string(64, 'g') + "\n"}) {
    const auto keys = frontend::ApiKeys::Parse(text);
    ASSERT_FALSE(keys.ok()) << text;
    EXPECT_EQ(keys.status().code(), absl::StatusCode::kInvalidArgument);
    // A hash is not for logs.
    EXPECT_EQ(keys.status().message().find("gggg"), absl::string_view::npos);
  }
  EXPECT_FALSE(frontend::ApiKeys::Load("/nonexistent/keys").ok());
}

TEST(ApiKeys, HashIsSha256) {
  EXPECT_EQ(frontend::HashApiKey("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace
}  // namespace longstride::testing
