#include <chrono>
#include <random>
#include <thread>

#include <grpcpp/grpcpp.h>
#include <longstride/v1/inference.grpc.pb.h>

#include "server/frontend/api_keys.h"
#include "tests/frontend/server_fixture.h"

namespace longstride::testing {
namespace {

namespace pb = ::longstride::v1;

class GrpcServer : public ServerTest {
 protected:
  void StartBoth(bool with_model = true) {
    StartServer(with_model);
    StartGrpc();
    channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(grpc_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = pb::Inference::NewStub(channel_);
  }
  static pb::GenerateRequest TextRequest(const std::string& text) {
    pb::GenerateRequest request;
    request.mutable_text()->set_text(text);
    return request;
  }
  std::vector<pb::GenerateEvent> Generate(const pb::GenerateRequest& request,
                                          grpc::Status* status) {
    grpc::ClientContext context;
    auto reader = stub_->Generate(&context, request);
    std::vector<pb::GenerateEvent> events;
    pb::GenerateEvent event;
    while (reader->Read(&event)) events.push_back(event);
    *status = reader->Finish();
    return events;
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<pb::Inference::Stub> stub_;
};

TEST_F(GrpcServer, GenerateStreamsAcceptedDeltasAndFinished) {
  AnswerWith({"one ", "two"}, engine::FinishReason::kLength);
  StartBoth();
  pb::GenerateRequest request = TextRequest("hi");
  request.mutable_output()->set_logprobs(1);
  grpc::Status status;
  const auto events = Generate(request, &status);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(events.size(), 5u);
  EXPECT_EQ(events[0].accepted().model(), "bytes");
  EXPECT_EQ(events[0].accepted().prompt_tokens(), 2);
  EXPECT_EQ(events[1].delta().text(), "one ");
  EXPECT_EQ(events[1].delta().tokens(0).id(), 'o');
  EXPECT_EQ(events[1].delta().tokens(0).bytes(), "o");
  EXPECT_EQ(events[1].delta().tokens(0).logprob(), -0.5f);
  EXPECT_EQ(events[2].delta().text(), "two");
  EXPECT_EQ(events[3].choice_finished().reason(), pb::FINISH_REASON_LENGTH);
  EXPECT_EQ(events[4].finished().usage().completion_tokens(), 2);
  EXPECT_EQ(events[4].finished().usage().kv_tokens_attended(), 250);
  for (const auto& event : events) EXPECT_EQ(event.id(), events[0].id());
}

TEST_F(GrpcServer, GivesTheEngineTheSameRequestAsRest) {
  AnswerWith({"x"});
  StartBoth();
  Post("/v1/completions", {{"prompt", "hello"},
                           {"max_tokens", 9},
                           {"temperature", 0.7},
                           {"top_p", 0.9},
                           {"seed", 3},
                           {"stop", {"."}},
                           {"logit_bias", {{"65", 1.5}}},
                           {"logprobs", 2}});
  pb::GenerateRequest request = TextRequest("hello");
  request.mutable_stopping()->set_max_tokens(9);
  request.mutable_stopping()->add_stop(".");
  request.mutable_sampling()->set_temperature(0.7);
  request.mutable_sampling()->set_top_p(0.9);
  request.mutable_sampling()->set_seed(3);
  (*request.mutable_sampling()->mutable_logit_bias())[65] = 1.5f;
  request.mutable_output()->set_logprobs(2);
  grpc::Status status;
  Generate(request, &status);
  ASSERT_TRUE(status.ok());
  const auto requests = engine_.requests();
  ASSERT_EQ(requests.size(), 2u);
  const engine::GenerationRequest& a = requests[0]->request();
  const engine::GenerationRequest& b = requests[1]->request();
  EXPECT_EQ(a.prompt, b.prompt);
  EXPECT_EQ(a.max_tokens, b.max_tokens);
  EXPECT_EQ(a.sampling.temperature, b.sampling.temperature);
  EXPECT_EQ(a.sampling.top_p, b.sampling.top_p);
  EXPECT_EQ(a.sampling.seed, b.sampling.seed);
  EXPECT_EQ(a.sampling.logit_bias, b.sampling.logit_bias);
  EXPECT_EQ(a.stop, b.stop);
  EXPECT_EQ(a.num_logprobs, b.num_logprobs);
  EXPECT_EQ(a.eos_token_ids, b.eos_token_ids);
}

TEST_F(GrpcServer, GenerateOnceCollects) {
  AnswerWith({"one ", "two"});
  StartBoth();
  pb::GenerateRequest request = TextRequest("hi");
  request.set_n(2);
  request.mutable_output()->set_echo(true);
  grpc::ClientContext context;
  pb::GenerateResponse response;
  const grpc::Status status = stub_->GenerateOnce(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.choices_size(), 2);
  EXPECT_EQ(response.choices(1).text(), "hione two");
  EXPECT_EQ(response.choices(1).tokens_size(), 2);
  EXPECT_EQ(response.choices(1).finish_reason(), pb::FINISH_REASON_STOP);
  EXPECT_EQ(response.usage().completion_tokens(), 4);
}

TEST_F(GrpcServer, RefusesWithCodeAndParam) {
  StartBoth();
  const auto refused = [&](const pb::GenerateRequest& request, grpc::StatusCode code,
                           const std::string& param) {
    grpc::ClientContext context;
    auto reader = stub_->Generate(&context, request);
    pb::GenerateEvent event;
    EXPECT_FALSE(reader->Read(&event));
    const grpc::Status status = reader->Finish();
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    const auto& trailers = context.GetServerTrailingMetadata();
    const auto it = trailers.find("longstride-error-param");
    EXPECT_EQ(it == trailers.end() ? "" : std::string(it->second.data(), it->second.size()), param);
  };
  refused(pb::GenerateRequest(), grpc::StatusCode::INVALID_ARGUMENT, "input");
  refused(TextRequest(""), grpc::StatusCode::INVALID_ARGUMENT, "prompt");
  refused(TextRequest(std::string(600, 'x')), grpc::StatusCode::INVALID_ARGUMENT, "prompt");
  pb::GenerateRequest request = TextRequest("x");
  request.set_model("other");
  refused(request, grpc::StatusCode::NOT_FOUND, "model");
  request = TextRequest("x");
  request.set_n(9);
  refused(request, grpc::StatusCode::INVALID_ARGUMENT, "n");
  request = TextRequest("x");
  request.mutable_sampling()->set_temperature(std::numeric_limits<double>::quiet_NaN());
  refused(request, grpc::StatusCode::INVALID_ARGUMENT, "temperature");
  request = TextRequest("x");
  (*request.mutable_sampling()->mutable_logit_bias())[1] = std::numeric_limits<float>::infinity();
  refused(request, grpc::StatusCode::INVALID_ARGUMENT, "logit_bias");
  request = TextRequest("x");
  request.mutable_sampling()->add_allowed_token_ids(kByteVocab);
  refused(request, grpc::StatusCode::INVALID_ARGUMENT, "allowed_token_ids");
  request.Clear();
  request.mutable_token_ids()->add_ids(-1);
  refused(request, grpc::StatusCode::INVALID_ARGUMENT, "prompt");
  request.Clear();
  request.mutable_chat()->add_messages()->set_role("king");
  refused(request, grpc::StatusCode::INVALID_ARGUMENT, "chat.messages[0].role");
  request.Clear();
  request.mutable_chat()->add_messages()->set_role("user");
  request.mutable_chat()->add_tools()->set_parameters_json(std::string(100000, '['));
  refused(request, grpc::StatusCode::INVALID_ARGUMENT, "chat.tools[0].parameters_json");
  engine_.set_submit_error(absl::ResourceExhaustedError("the queue is full"));
  refused(TextRequest("x"), grpc::StatusCode::RESOURCE_EXHAUSTED, "");
  EXPECT_EQ(engine_.submitted(), 0);
}

TEST_F(GrpcServer, OverLargeRequestIsRefused) {
  grpc_options_.max_receive_bytes = 1000;
  StartBoth();
  grpc::Status status;
  Generate(TextRequest(std::string(5000, 'x')), &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(GrpcServer, ErrorEndsTheStream) {
  engine_.set_script([](const engine::GenerationRequest& request) {
    return std::vector<engine::OutputEvent>{
        DeltaEvent("par", 'p'), EndEvent(request, 1, absl::InternalError("the logits are NaN"))};
  });
  StartBoth();
  grpc::Status status;
  const auto events = Generate(TextRequest("x"), &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(events.size(), 2u);
}

TEST_F(GrpcServer, DeadlineReachesTheEngine) {
  StartBoth();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  auto reader = stub_->Generate(&context, TextRequest("x"));
  const auto request = engine_.WaitRequest(0);
  ASSERT_NE(request, nullptr);
  ASSERT_TRUE(request->request().deadline.has_value());
  const double left = absl::ToDoubleSeconds(*request->request().deadline - absl::Now());
  EXPECT_GT(left, 20);
  EXPECT_LT(left, 31);
  context.TryCancel();
  reader->Finish();
}

TEST_F(GrpcServer, CancelFreesTheRequestInEveryState) {
  StartBoth();
  {
    grpc::ClientContext context;  // queued: nothing was produced
    auto reader = stub_->Generate(&context, TextRequest("x"));
    ASSERT_NE(engine_.WaitRequest(0), nullptr);
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(engine_.WaitLive(0));
  }
  {
    grpc::ClientContext context;  // in the middle of an answer
    auto reader = stub_->Generate(&context, TextRequest("x"));
    const auto request = engine_.WaitRequest(1);
    request->Push({DeltaEvent("a", 'a')});
    pb::GenerateEvent event;
    ASSERT_TRUE(reader->Read(&event));
    ASSERT_TRUE(reader->Read(&event));
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(engine_.WaitLive(0));
  }
  {
    grpc::ClientContext context;  // unary, by deadline
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
    pb::GenerateResponse response;
    EXPECT_EQ(stub_->GenerateOnce(&context, TextRequest("x"), &response).error_code(),
              grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_TRUE(engine_.WaitLive(0));
  }
}

TEST_F(GrpcServer, SlowReaderBoundsWhatIsTaken) {
  StartBoth();
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("x"));
  const auto request = engine_.WaitRequest(0);
  ASSERT_NE(request, nullptr);
  for (int i = 0; i < 2000; ++i) request->Push({DeltaEvent(std::string(10000, 'x'), 'x')});
  context.TryCancel();
  reader->Finish();
  EXPECT_TRUE(engine_.WaitLive(0));
}

TEST_F(GrpcServer, Classify) {
  served_.labels = {"no", "yes", "perhaps"};
  engine_.StartTicking(absl::Milliseconds(1));
  StartBoth();
  pb::ClassifyRequest request;
  request.add_inputs()->set_text("a");
  request.add_inputs()->mutable_token_ids()->add_ids('b');
  {
    grpc::ClientContext context;
    pb::ClassifyResponse response;
    ASSERT_TRUE(stub_->Classify(&context, request, &response).ok());
    ASSERT_EQ(response.classifications_size(), 2);
    EXPECT_EQ(response.classifications(1).label(), "yes");
    EXPECT_EQ(response.classifications(1).probabilities(1), 0.625f);
    EXPECT_EQ(response.labels(2), "perhaps");
    EXPECT_EQ(response.prompt_tokens(), 2);
  }
  request.add_inputs();
  grpc::ClientContext context;
  pb::ClassifyResponse response;
  const grpc::Status status = stub_->Classify(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_NE(status.error_message().find("empty"), std::string::npos) << status.error_message();
}

TEST_F(GrpcServer, EmbedTokenizeDetokenizeAndModels) {
  engine_.StartTicking(absl::Milliseconds(1));
  StartBoth();
  {
    grpc::ClientContext context;
    pb::EmbedRequest request;
    request.add_inputs()->set_text("a");
    request.add_inputs()->mutable_token_ids()->add_ids('b');
    pb::EmbedResponse response;
    ASSERT_TRUE(stub_->Embed(&context, request, &response).ok());
    ASSERT_EQ(response.embeddings_size(), 2);
    EXPECT_NEAR(response.embeddings(1).values(0), 0.6, 1e-6);
  }
  {
    grpc::ClientContext context;
    pb::TokenizeRequest request;
    request.mutable_text()->set_text("ab");
    request.set_with_pieces(true);
    pb::TokenizeResponse response;
    ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
    EXPECT_EQ(response.ids(1), 'b');
    EXPECT_EQ(response.pieces(1), "b");
    EXPECT_EQ(response.max_context(), 512);
  }
  {
    grpc::ClientContext context;
    pb::DetokenizeRequest request;
    request.add_ids('h');
    request.add_ids('i');
    pb::DetokenizeResponse response;
    ASSERT_TRUE(stub_->Detokenize(&context, request, &response).ok());
    EXPECT_EQ(response.text(), "hi");
  }
  {
    grpc::ClientContext context;
    pb::ListModelsResponse response;
    ASSERT_TRUE(stub_->ListModels(&context, pb::ListModelsRequest(), &response).ok());
    ASSERT_EQ(response.models_size(), 1);
    EXPECT_EQ(response.models(0).plan_digest(), "fedcba9876543210");
    const auto& metadata = context.GetServerInitialMetadata();
    const auto plan = metadata.find("x-longstride-plan");
    ASSERT_NE(plan, metadata.end());
    EXPECT_EQ(std::string(plan->second.data(), plan->second.size()), "fedcba9876543210");
    grpc::ClientContext second;
    pb::GetModelRequest request;
    request.set_name("nope");
    pb::Model model;
    EXPECT_EQ(stub_->GetModel(&second, request, &model).error_code(), grpc::StatusCode::NOT_FOUND);
  }
}

TEST_F(GrpcServer, ServerInfoAnswersWhileLoading) {
  grpc_options_.version = "9.9";
  StartBoth(false);
  pb::ServerInfo info;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->GetServerInfo(&context, pb::GetServerInfoRequest(), &info).ok());
  }
  EXPECT_EQ(info.state(), pb::SERVER_STATE_LOADING);
  EXPECT_EQ(info.version(), "9.9");
  grpc::ClientContext context;
  pb::ListModelsResponse models;
  EXPECT_EQ(stub_->ListModels(&context, pb::ListModelsRequest(), &models).error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

TEST_F(GrpcServer, NeverSharesAPortInUse) {
  StartBoth();
  frontend::GrpcServerOptions again = grpc_options_;
  again.port = grpc_->port();
  const auto second = frontend::StartGrpcServer(again, service_.get(), &observer_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  again.port = http_->port();
  EXPECT_FALSE(frontend::StartGrpcServer(again, service_.get(), &observer_).ok());
}

TEST_F(GrpcServer, AsksForAKey) {
  const std::string path = ::testing::TempDir() + "/longstride_grpc_keys_test";
  FILE* file = fopen(path.c_str(), "w");
  fprintf(file, "alice:%s\n", frontend::HashApiKey("alpha").c_str());
  fclose(file);
  grpc_options_.api_key_file = path;
  AnswerWith({"x"});
  StartBoth();
  std::remove(path.c_str());
  grpc::Status status;
  Generate(TextRequest("x"), &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer alpha");
  pb::GenerateResponse response;
  EXPECT_TRUE(stub_->GenerateOnce(&context, TextRequest("x"), &response).ok());
  EXPECT_EQ(engine_.requests().at(0)->request().client, "alice");
}

TEST_F(GrpcServer, CapsCalls) {
  grpc_options_.max_calls = 2;
  StartBoth();
  grpc::ClientContext contexts[2];
  auto first = stub_->Generate(&contexts[0], TextRequest("x"));
  auto second = stub_->Generate(&contexts[1], TextRequest("x"));
  ASSERT_NE(engine_.WaitRequest(1), nullptr);
  grpc::Status status;
  Generate(TextRequest("x"), &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  for (auto& context : contexts) context.TryCancel();
  first->Finish();
  second->Finish();
}

TEST_F(GrpcServer, StopsWithinGraceWhileAStreamRuns) {
  StartBoth();
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("x"));
  const auto request = engine_.WaitRequest(0);
  ASSERT_NE(request, nullptr);
  std::thread stopper([&] { grpc_->Stop(absl::Seconds(20)); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  request->Push(Answer(request->request(), {"end"}));
  pb::GenerateEvent event;
  std::string text;
  while (reader->Read(&event)) text += event.delta().text();
  EXPECT_EQ(text, "end");
  EXPECT_TRUE(reader->Finish().ok());
  stopper.join();
}

TEST_F(GrpcServer, AbortStormLeavesNothingBehind) {
  engine_.StartTicking(absl::Milliseconds(1));
  StartBoth();
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(seed + t);
      for (int i = 0; i < 250; ++i) {
        grpc::ClientContext context;
        pb::GenerateRequest request = TextRequest("storm");
        request.mutable_stopping()->set_max_tokens(100);
        auto reader = stub_->Generate(&context, request);
        pb::GenerateEvent event;
        for (unsigned reads = random() % 5; reads > 0 && reader->Read(&event); --reads) {
        }
        context.TryCancel();
        reader->Finish();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(engine_.WaitLive(0));
  for (int i = 0; i < 500 && observer_.streams.load() != 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(observer_.streams.load(), 0);
}

}  // namespace
}  // namespace longstride::testing
