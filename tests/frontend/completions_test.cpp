#include "tests/frontend/server_fixture.h"

namespace longstride::testing {
namespace {

using nlohmann::json;
using Completions = ServerTest;

TEST_F(Completions, AnswersWithOpenAiShape) {
  AnswerWith({"wor", "ld"});
  StartServer();
  const RawResponse response =
      Post("/v1/completions", {{"model", "bytes"}, {"prompt", "hello "}, {"max_tokens", 5}},
           "X-Request-Id: req-42\r\n");
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(response.headers.at("x-request-id"), "req-42");
  EXPECT_EQ(response.headers.at("x-longstride-plan"), "fedcba9876543210");
  const json body = Json(response);
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["model"], "bytes");
  EXPECT_EQ(body["choices"].size(), 1u);
  EXPECT_EQ(body["choices"][0]["text"], "world");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(body["choices"][0]["logprobs"].is_null());
  EXPECT_EQ(body["usage"]["prompt_tokens"], 6);
  EXPECT_EQ(body["usage"]["completion_tokens"], 2);
  EXPECT_EQ(body["usage"]["total_tokens"], 8);
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
  EXPECT_EQ(body["usage"]["sparse_details"]["kv_tokens_total"], 1000);
  EXPECT_EQ(body["usage"]["sparse_details"]["kv_tokens_attended"], 250);
  EXPECT_TRUE(body["system_fingerprint"].get<std::string>().starts_with("ls-"));
}

TEST_F(Completions, PassesEveryOptionToTheEngine) {
  AnswerWith({"x"});
  StartServer();
  const json body = {{"prompt", "ab"},
                     {"max_tokens", 7},
                     {"min_tokens", 2},
                     {"n", 2},
                     {"temperature", 0.5},
                     {"top_p", 0.25},
                     {"top_k", 40},
                     {"min_p", 0.125},
                     {"typical_p", 0.75},
                     {"repetition_penalty", 1.5},
                     {"presence_penalty", -1},
                     {"frequency_penalty", 2},
                     {"seed", 1234},
                     {"logit_bias", {{"98", 5}, {"97", -5}}},
                     {"allowed_token_ids", {97, 98, 99}},
                     {"banned_token_ids", {99}},
                     {"stop", {"END", "\n\n"}},
                     {"stop_token_ids", {10}},
                     {"ignore_eos", true},
                     {"include_stop_str_in_output", true},
                     {"skip_special_tokens", false},
                     {"logprobs", 3},
                     {"prompt_logprobs", 1},
                     {"priority", -4},
                     {"cache_salt", "tenant-7"},
                     {"cache_prompt", false},
                     {"timeout", 30}};
  ASSERT_EQ(Post("/v1/completions", body, "x-longstride-client: alice\r\n").status, 200);
  const engine::GenerationRequest& got = engine_.requests().at(0)->request();
  EXPECT_EQ(got.prompt, (std::vector<int32_t>{'a', 'b'}));
  EXPECT_EQ(got.max_tokens, 7);
  EXPECT_EQ(got.min_tokens, 2);
  EXPECT_EQ(got.num_choices, 2);
  EXPECT_EQ(got.sampling.temperature, 0.5f);
  EXPECT_EQ(got.sampling.top_p, 0.25f);
  EXPECT_EQ(got.sampling.top_k, 40);
  EXPECT_EQ(got.sampling.min_p, 0.125f);
  EXPECT_EQ(got.sampling.typical_p, 0.75f);
  EXPECT_EQ(got.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(got.sampling.presence_penalty, -1.0f);
  EXPECT_EQ(got.sampling.frequency_penalty, 2.0f);
  EXPECT_EQ(got.sampling.seed, 1234u);
  EXPECT_EQ(got.sampling.logit_bias,
            (std::vector<std::pair<int32_t, float>>{{97, -5.0f}, {98, 5.0f}}));
  EXPECT_EQ(got.sampling.allowed_token_ids, (std::vector<int32_t>{97, 98, 99}));
  EXPECT_EQ(got.sampling.banned_token_ids, (std::vector<int32_t>{99}));
  EXPECT_EQ(got.stop, (std::vector<std::string>{"END", "\n\n"}));
  EXPECT_EQ(got.stop_token_ids, (std::vector<int32_t>{10}));
  EXPECT_EQ(got.eos_token_ids, (std::vector<int32_t>{kEos, kImEnd}));
  EXPECT_TRUE(got.ignore_eos);
  EXPECT_TRUE(got.include_stop_in_output);
  EXPECT_FALSE(got.skip_special_tokens);
  EXPECT_EQ(got.num_logprobs, 3);
  EXPECT_EQ(got.num_prompt_logprobs, 1);
  EXPECT_EQ(got.priority, -4);
  EXPECT_EQ(got.cache_salt, "tenant-7");
  EXPECT_FALSE(got.use_prefix_cache);
  EXPECT_TRUE(got.deadline.has_value());
  EXPECT_EQ(got.client, "alice");
}

TEST_F(Completions, TakesTheModelsSamplingDefaults) {
  AnswerWith({"x"});
  StartServer(false);
  frontend::ServedModel model = MakeByteModel(tokenizer_.get());
  model.defaults.temperature = 0.25f;
  model.defaults.top_k = 11;
  service_->SetModel(std::move(model), &engine_);
  ASSERT_EQ(Post("/v1/completions", {{"prompt", "a"}, {"top_k", 0}}).status, 200);
  ASSERT_EQ(Post("/v1/completions", {{"prompt", "a"}}).status, 200);
  EXPECT_EQ(engine_.requests().at(0)->request().sampling.temperature, 0.25f);
  EXPECT_EQ(engine_.requests().at(0)->request().sampling.top_k, 0);
  EXPECT_EQ(engine_.requests().at(1)->request().sampling.top_k, 11);
}

TEST_F(Completions, DrawsASeedPerRequestWhenNoneIsGiven) {
  AnswerWith({"x"});
  StartServer();
  Post("/v1/completions", {{"prompt", "a"}});
  Post("/v1/completions", {{"prompt", "a"}});
  EXPECT_NE(engine_.requests().at(0)->request().sampling.seed,
            engine_.requests().at(1)->request().sampling.seed);
}

TEST_F(Completions, TakesAllFourFormsOfPrompt) {
  AnswerWith({"x"});
  StartServer();
  const json bodies[] = {{{"prompt", "ab"}},
                         {{"prompt", {97, 98}}},
                         {{"prompt", {"ab", "c"}}},
                         {{"prompt", json::array({{97, 98}, {99}})}}};
  const std::size_t prompts[] = {1, 1, 2, 2};
  std::size_t seen = 0;
  for (int i = 0; i < 4; ++i) {
    const RawResponse response = Post("/v1/completions", bodies[i]);
    ASSERT_EQ(response.status, 200) << response.body;
    EXPECT_EQ(Json(response)["choices"].size(), prompts[i]);
    EXPECT_EQ(engine_.requests().at(seen)->request().prompt, (std::vector<int32_t>{97, 98}));
    seen += prompts[i];
    EXPECT_EQ(engine_.requests().size(), seen);
  }
}

TEST_F(Completions, NumbersChoicesAcrossPrompts) {
  engine_.set_script([](const engine::GenerationRequest& request) {
    return Answer(request, {std::string(1, static_cast<char>(request.prompt[0]))});
  });
  StartServer();
  const json body = Json(Post("/v1/completions", {{"prompt", {"p", "q"}}, {"n", 2}}));
  ASSERT_EQ(body["choices"].size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(body["choices"][i]["index"], i);
    EXPECT_EQ(body["choices"][i]["text"], i < 2 ? "p" : "q");
  }
}

TEST_F(Completions, SpecialTokensInTextAreText) {
  AnswerWith({"x"});
  StartServer();
  Post("/v1/completions", {{"prompt", "<|eos|>"}});
  EXPECT_EQ(engine_.requests().at(0)->request().prompt.size(), 7u);
  Post("/v1/completions", {{"prompt", "<|eos|>"}, {"parse_special_tokens", true}});
  EXPECT_EQ(engine_.requests().at(1)->request().prompt, (std::vector<int32_t>{kEos}));
}

// What lm-eval-harness sends for log-likelihoods.
TEST_F(Completions, EchoScoresThePromptWithoutGenerating) {
  engine_.set_script([](const engine::GenerationRequest& request) {
    EXPECT_EQ(request.max_tokens, 0);
    EXPECT_EQ(request.num_prompt_logprobs, 1);
    engine::OutputEvent scored;
    scored.kind = engine::OutputEvent::Kind::kPromptLogprobs;
    for (const int32_t id : request.prompt) {
      engine::TokenOutput token;
      token.token = id;
      token.text = std::string(1, static_cast<char>(id));
      token.logprob = -1.5f;
      token.top = {{'z', -0.5f}};
      scored.tokens.push_back(token);
    }
    scored.tokens[0].top.clear();
    return std::vector<engine::OutputEvent>{scored, ChoiceEndEvent(engine::FinishReason::kLength),
                                            EndEvent(request, 0)};
  });
  StartServer();
  const RawResponse response = Post(
      "/v1/completions", {{"prompt", "abc"}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 1}});
  ASSERT_EQ(response.status, 200) << response.body;
  const json choice = Json(response)["choices"][0];
  EXPECT_EQ(choice["text"], "abc");
  EXPECT_EQ(choice["finish_reason"], "length");
  EXPECT_EQ(choice["logprobs"]["tokens"], (json{"a", "b", "c"}));
  EXPECT_EQ(choice["logprobs"]["token_logprobs"], (json{nullptr, -1.5, -1.5}));
  EXPECT_TRUE(choice["logprobs"]["top_logprobs"][0].is_null());
  EXPECT_EQ(choice["logprobs"]["top_logprobs"][1], (json{{"z", -0.5}, {"b", -1.5}}));
  EXPECT_EQ(choice["logprobs"]["text_offset"], (json{0, 1, 2}));
}

TEST_F(Completions, LogprobsClampMinusInfinityAndKeepTheSampledToken) {
  AnswerWith({"a", "b"});
  StartServer();
  const json logprobs =
      Json(Post("/v1/completions", {{"prompt", "q"}, {"logprobs", 2}}))["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"], (json{"a", "b"}));
  EXPECT_EQ(logprobs["token_logprobs"], (json{-0.5, -0.5}));
  EXPECT_EQ(logprobs["top_logprobs"][0]["a"], -0.5);
  EXPECT_EQ(logprobs["top_logprobs"][0][std::string(1, '\0')], -9999.0);
  const json as_ids = Json(
      Post("/v1/completions",
           {{"prompt", "q"}, {"logprobs", 1}, {"return_tokens_as_token_ids", true}}))["choices"][0];
  EXPECT_EQ(as_ids["logprobs"]["tokens"], (json{"token_id:97", "token_id:98"}));
}

TEST_F(Completions, PromptLogprobsInTheirOwnField) {
  engine_.set_script([](const engine::GenerationRequest& request) {
    engine::OutputEvent scored;
    scored.kind = engine::OutputEvent::Kind::kPromptLogprobs;
    scored.tokens.resize(2);
    scored.tokens[0].token = 'a';
    scored.tokens[1].token = 'b';
    scored.tokens[1].logprob = -2;
    scored.tokens[1].top = {{'b', -2}};
    auto events = Answer(request, {"x"});
    events.insert(events.begin(), scored);
    return events;
  });
  StartServer();
  const json choice =
      Json(Post("/v1/completions", {{"prompt", "ab"}, {"prompt_logprobs", 1}}))["choices"][0];
  EXPECT_TRUE(choice["prompt_logprobs"][0].is_null());
  EXPECT_EQ(choice["prompt_logprobs"][1]["98"]["logprob"], -2);
  EXPECT_EQ(choice["prompt_logprobs"][1]["98"]["decoded_token"], "b");
  EXPECT_EQ(choice["text"], "x");
}

TEST_F(Completions, ReturnsTokenIdsAndTimingsWhenAsked) {
  AnswerWith({"a", "b"});
  StartServer();
  const json body = Json(
      Post("/v1/completions", {{"prompt", "xy"}, {"return_token_ids", true}, {"timings", true}}));
  EXPECT_EQ(body["choices"][0]["prompt_token_ids"], (json{'x', 'y'}));
  EXPECT_EQ(body["choices"][0]["token_ids"], (json{'a', 'b'}));
  EXPECT_EQ(body["timings"]["predicted_n"], 2);
}

TEST_F(Completions, ListsIgnoredFieldsInAHeader) {
  AnswerWith({"x"});
  StartServer();
  const RawResponse response =
      Post("/v1/completions", {{"prompt", "a"}, {"user", "u"}, {"zz_new", 1}, {"bad\nname", 1}});
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.headers.at("x-longstride-ignored-fields"), "user, zz_new");
}

TEST_F(Completions, ClientThatLeavesCancelsTheRequest) {
  StartServer();
  RawClient client(port());
  client.Send(MakeRequest("POST", "/v1/completions", R"({"prompt":"a"})"));
  const auto request = engine_.WaitRequest(0);
  ASSERT_NE(request, nullptr);
  client.Close();
  EXPECT_TRUE(engine_.WaitLive(0));
  EXPECT_TRUE(request->cancelled());
}

TEST_F(Completions, EngineErrorIsTheAnswersStatus) {
  engine_.set_script([](const engine::GenerationRequest& request) {
    return std::vector<engine::OutputEvent>{
        DeltaEvent("par", 'p'),
        EndEvent(request, 1, absl::DeadlineExceededError("the deadline passed"))};
  });
  StartServer();
  const RawResponse response = Post("/v1/completions", {{"prompt", "a"}});
  EXPECT_EQ(response.status, 504);
  EXPECT_EQ(Json(response)["error"]["code"], "deadline_exceeded");
}

TEST_F(Completions, OneFailedPromptFailsAllAndCancelsTheRest) {
  engine_.set_script([](const engine::GenerationRequest& request) {
    if (request.prompt[0] == 'b') {
      return std::vector<engine::OutputEvent>{
          EndEvent(request, 0, absl::InternalError("no logits"))};
    }
    return std::vector<engine::OutputEvent>{};
  });
  StartServer();
  EXPECT_EQ(Post("/v1/completions", {{"prompt", {"a", "b"}}}).status, 500);
  EXPECT_TRUE(engine_.WaitLive(0));
  EXPECT_TRUE(engine_.requests().at(0)->cancelled());
}

using Embeddings = ServerTest;

TEST_F(Embeddings, AreNormalisedInOrderAndBase64IsTheSame) {
  engine_.StartTicking(absl::Milliseconds(1));
  StartServer();
  json inputs = json::array();
  for (int i = 0; i < 100; ++i) inputs.push_back("text " + std::to_string(i));
  const json body = Json(Post("/v1/embeddings", {{"input", inputs}}));
  ASSERT_EQ(body["data"].size(), 100u) << body;
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(body["data"][i]["index"], i);
    EXPECT_NEAR(body["data"][i]["embedding"][0].get<double>(), 0.6, 1e-6);
    EXPECT_NEAR(body["data"][i]["embedding"][1].get<double>(), 0.8, 1e-6);
  }
  const json packed =
      Json(Post("/v1/embeddings", {{"input", "one"}, {"encoding_format", "base64"}}));
  EXPECT_EQ(packed["data"][0]["embedding"], "mpkZP83MTD8=");
  EXPECT_GT(body["usage"]["prompt_tokens"], 0);
}

TEST_F(Embeddings, KeepFewInputsInTheEngineAtATime) {
  service_options_.max_vectors_in_flight = 4;
  StartServer();
  json inputs = json::array();
  for (int i = 0; i < 10; ++i) inputs.push_back("x");
  RawClient client(port());
  client.Send(MakeRequest("POST", "/v1/embeddings", json{{"input", inputs}}.dump()));
  ASSERT_NE(engine_.WaitRequest(3), nullptr);
  EXPECT_EQ(engine_.live(), 4);
  const auto finish = [&](std::size_t i) {
    const auto request = engine_.WaitRequest(i);
    ASSERT_NE(request, nullptr);
    engine::OutputEvent event;
    event.kind = engine::OutputEvent::Kind::kVector;
    event.vector = {1, 0};
    request->Push({event, EndEvent(request->request(), 0)});
  };
  for (std::size_t i = 0; i < 10; ++i) {
    finish(i);
    EXPECT_LE(engine_.live(), 4);
  }
  EXPECT_EQ(client.ReadResponse().status, 200);
}

TEST_F(Embeddings, FullQueueOnlyFailsWhenNothingIsUnderWay) {
  StartServer();
  engine_.set_submit_error(absl::ResourceExhaustedError("the queue is full"));
  const RawResponse response = Post("/v1/embeddings", {{"input", {"a", "b"}}});
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(response.headers.count("retry-after"), 1u);
}

using Classification = ServerTest;

TEST_F(Classification, GivesEachInputsLabelAndProbabilities) {
  served_.causal = false;
  served_.labels = {"no", "yes", "perhaps"};
  engine_.StartTicking(absl::Milliseconds(1));
  StartServer();
  const json body = Json(Post("/v1/classify", {{"model", "bytes"}, {"input", {"one", "two"}}}));
  ASSERT_EQ(body["data"].size(), 2u) << body;
  EXPECT_EQ(body["object"], "list");
  EXPECT_TRUE(body["id"].get<std::string>().starts_with("classify-"));
  EXPECT_EQ(body["data"][1], (json{{"index", 1},
                                   {"label", "yes"},
                                   {"probs", {0.125, 0.625, 0.25}},
                                   {"num_classes", 3}}));
  EXPECT_EQ(body["usage"], (json{{"prompt_tokens", 6}, {"total_tokens", 6}}));
  EXPECT_EQ(Json(Post("/v1/classify", {{"input", "one"}}))["data"].size(), 1u);
  const json ids = Json(Post("/v1/classify", {{"input", {1, 2, 3}}}));
  EXPECT_EQ(ids["usage"]["prompt_tokens"], 3);
}

}  // namespace
}  // namespace longstride::testing
