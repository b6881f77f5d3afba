#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "gmock/gmock.h"
#include "model/sparsity/hash.h"
#include "server/frontend/audit_chain.h"
#include "server/frontend/audit_log.h"
#include "tests/frontend/server_fixture.h"
#include "tests/testing/temp_folder.h"

namespace longstride::testing {
namespace {

using frontend::AuditLine;
using frontend::AuditLog;
using frontend::AuditOptions;
using frontend::AuditSeal;
using frontend::AuditSummary;
using frontend::AuditTail;
using frontend::VerifyAuditLog;
using nlohmann::json;

absl::StatusOr<AuditSummary> Verify(const std::string& text, std::string_view head = "") {
  std::istringstream in(text);
  return VerifyAuditLog(in, head);
}

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

std::vector<std::string> LinesOf(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line + "\n");
  return lines;
}

// Three records, one that was cut off in the middle and closed, and one more.
std::string SmallLog(AuditTail* tail) {
  const absl::Time time = absl::FromUnixMillis(1795734000123);
  std::string text;
  for (const char* data : {R"({"a":1})", R"({"text":"ü \"x\""})", R"({"torn":4})"}) {
    text += AuditLine(time, "request", data, tail);
  }
  const std::string cut_off = "{\"seq\":4,\"time\":\"2026-\x01\xff";
  text += cut_off + AuditSeal(cut_off, tail);
  text += AuditLine(time, "start", "{}", tail);
  return text;
}

TEST(AuditChain, AWholeLogIsVerified) {
  AuditTail tail;
  const std::string text = SmallLog(&tail);
  const auto summary = Verify(text);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->tail.seq, 5);
  EXPECT_EQ(summary->tail.hash, tail.hash);
  EXPECT_EQ(summary->torn, 1);
  const auto empty = Verify("");
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ(empty->tail.seq, 0);
}

TEST(AuditChain, ARecordCanBeCheckedByHand) {
  AuditTail tail;
  const std::string line = LinesOf(SmallLog(&tail))[1];
  const json record = json::parse(line);
  EXPECT_EQ(record["seq"], 2);
  EXPECT_EQ(record["time"], "2026-11-26T23:00:00.123000Z");
  EXPECT_EQ(record["data"]["text"], "ü \"x\"");
  EXPECT_EQ(model::Sha256Hex(line.substr(0, line.find(",\"hash\":"))), record["hash"]);
  AuditTail again;
  EXPECT_EQ(record["prev"], json::parse(LinesOf(SmallLog(&again))[0])["hash"]);
}

TEST(AuditChain, NamesTheLineOfAChangedByteWhereverItIs) {
  AuditTail tail;
  const std::string text = SmallLog(&tail);
  int64_t line = 1;
  for (size_t at = 0; at < text.size(); ++at) {
    for (const char value : {'\n', 'f', '0', '"', static_cast<char>(text[at] ^ 0x20)}) {
      if (value == text[at]) continue;
      std::string changed = text;
      changed[at] = value;
      const auto summary = Verify(changed);
      ASSERT_FALSE(summary.ok()) << "byte " << at;
      EXPECT_TRUE(ToStd(summary.status().message()).starts_with(StrCat("line ", line, " ")))
          << "byte " << at << " of line " << line << ": " << summary.status();
    }
    if (text[at] == '\n') ++line;
  }
  EXPECT_EQ(line, 6);
}

TEST(AuditChain, FindsLinesThatWereRemovedReorderedPutInOrCut) {
  AuditTail tail;
  const std::vector<std::string> lines = LinesOf(SmallLog(&tail));
  const auto joined = [&](const std::vector<size_t>& order) {
    std::string text;
    for (const size_t i : order) text += lines[i];
    return std::string(Verify(text).status().message()).substr(0, 7);
  };
  EXPECT_EQ(joined({0, 1, 2, 3, 4}), "");
  EXPECT_EQ(joined({1, 2, 3, 4}), "line 1 ");
  EXPECT_EQ(joined({0, 2, 3, 4}), "line 2 ");
  EXPECT_EQ(joined({0, 1, 2, 4}), "line 4 ");
  EXPECT_EQ(joined({0, 2, 1, 3, 4}), "line 2 ");
  EXPECT_EQ(joined({0, 1, 1, 2, 3, 4}), "line 3 ");
  EXPECT_EQ(joined({0, 1, 2, 3, 4, 4}), "line 6 ");
  // Cut anywhere within a line.
  const size_t end = lines[0].size() + lines[1].size();
  for (size_t size = lines[0].size() + 1; size < end; ++size) {
    EXPECT_TRUE(
        ToStd(Verify(lines[0] + lines[1].substr(0, size - lines[0].size())).status().message())
            .starts_with("line 2 is cut off"));
  }
}

TEST(AuditChain, AnEndThatWasRemovedIsFoundByAHashNotedBefore) {
  AuditTail tail;
  const std::vector<std::string> lines = LinesOf(SmallLog(&tail));
  const std::string third = json::parse(lines[2])["hash"];
  const auto whole = Verify(lines[0] + lines[1] + lines[2] + lines[3] + lines[4], third);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->after_head, 2);
  EXPECT_TRUE(Verify(lines[0] + lines[1] + lines[2], third).ok());
  EXPECT_TRUE(Verify(lines[0] + lines[1]).ok());
  const auto shorter = Verify(lines[0] + lines[1], third);
  ASSERT_FALSE(shorter.ok());
  EXPECT_THAT(std::string(shorter.status().message()), ::testing::HasSubstr("none has the hash"));
  // All of it written anew, with another second record.
  AuditTail forged;
  std::string text;
  for (int i = 0; i < 5; ++i) text += AuditLine(absl::UnixEpoch(), "request", "{}", &forged);
  EXPECT_TRUE(Verify(text).ok());
  EXPECT_FALSE(Verify(text, third).ok());
}

class AuditObserver : public CountingObserver {
 public:
  void AuditCommitted(int64_t records, double) override { committed += records; }
  void AuditFailed() override { ++failed; }
  void AuditPending(int64_t records) override { pending = records; }
  void AuditLost(int64_t records) override { lost += records; }

  std::atomic<int64_t> committed{0}, failed{0}, pending{0}, lost{0};
};

class AuditLogTest : public ::testing::Test {
 protected:
  AuditLogTest() { options_.file = folder_.File("audit.jsonl"); }

  std::unique_ptr<AuditLog> Open() {
    auto log = AuditLog::Open(options_, Clock::Real(), &observer_);
    EXPECT_TRUE(log.ok()) << log.status();
    return log.ok() ? *std::move(log) : nullptr;
  }
  // Appends and waits until the log has spoken.
  static void AppendAndWait(AuditLog* log, const std::string& data) {
    std::mutex mutex;
    std::condition_variable said;
    bool done = false;
    log->Append("request", data, [&] {
      std::lock_guard<std::mutex> lock(mutex);
      done = true;
      said.notify_all();
    });
    std::unique_lock<std::mutex> lock(mutex);
    ASSERT_TRUE(said.wait_for(lock, std::chrono::seconds(20), [&] { return done; }));
  }
  std::string Text() const { return ReadAll(options_.file); }
  void Write(const std::string& text) const {
    std::ofstream(options_.file, std::ios::binary | std::ios::trunc) << text;
  }
  std::vector<std::string> Kinds() const {
    std::vector<std::string> kinds;
    for (const std::string& line : LinesOf(Text())) {
      const json record = json::parse(line, nullptr, false);
      kinds.push_back(record.is_discarded() || record.contains("torn")
                          ? "torn"
                          : record["kind"].get<std::string>());
    }
    return kinds;
  }

  TempFolder folder_;
  AuditOptions options_;
  AuditObserver observer_;
};

TEST_F(AuditLogTest, RecordsAreOnDiskInOrderAndTheChainGoesOnAfterARestart) {
  {
    const auto log = Open();
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 50; ++i) log->Append("request", StrCat("{\"i\":", i, "}"));
        AppendAndWait(log.get(), "{}");
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(observer_.committed, 204);
    EXPECT_EQ(LinesOf(Text()).size(), 204u);
  }
  AppendAndWait(Open().get(), "{}");
  const auto summary = Verify(Text());
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->tail.seq, 207);  // two of them "stop"
  EXPECT_EQ(Kinds().back(), "stop");
}

TEST_F(AuditLogTest, TwoServersCannotShareAFile) {
  const auto log = Open();
  const auto second = AuditLog::Open(options_, Clock::Real(), &observer_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(second.status().message()), ::testing::HasSubstr("another process"));
}

TEST_F(AuditLogTest, RefusesWhatIsNoAuditLog) {
  Write("a text of somebody\n");
  EXPECT_FALSE(AuditLog::Open(options_, Clock::Real(), &observer_).ok());
  EXPECT_EQ(Text(), "a text of somebody\n");
  AuditTail tail;
  std::string text = SmallLog(&tail);
  text[text.size() - 100] ^= 1;
  Write(text);
  EXPECT_FALSE(AuditLog::Open(options_, Clock::Real(), &observer_).ok());
  options_.file = folder_.path();
  EXPECT_FALSE(AuditLog::Open(options_, Clock::Real(), &observer_).ok());
  options_.file = "/dev/null";
  EXPECT_FALSE(AuditLog::Open(options_, Clock::Real(), &observer_).ok());
}

TEST_F(AuditLogTest, ALineThatACrashCutOffStaysAndIsNamed) {
  AuditTail tail;
  const std::string text = SmallLog(&tail);
  const std::vector<std::string> lines = LinesOf(text);
  for (const size_t cut : {size_t{1}, size_t{20}, lines[4].size() - 2}) {
    const std::string left = text.substr(0, text.size() - lines[4].size() + cut);
    Write(left);
    AppendAndWait(Open().get(), "{}");
    EXPECT_TRUE(Text().starts_with(left));
    const auto summary = Verify(Text());
    ASSERT_TRUE(summary.ok()) << summary.status();
    EXPECT_EQ(summary->torn, 2);
    EXPECT_EQ(Kinds(), (std::vector<std::string>{"request", "request", "request", "torn", "torn",
                                                 "request", "stop"}));
  }
}

TEST_F(AuditLogTest, ALineThatLacksNothingButItsEndIsARecord) {
  AuditTail tail;
  const std::string text = SmallLog(&tail);
  Write(text.substr(0, text.size() - 1));
  AppendAndWait(Open().get(), "{}");
  EXPECT_TRUE(Text().starts_with(text));
  const auto summary = Verify(Text());
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->torn, 1);  // SmallLog's
  EXPECT_EQ(summary->tail.seq, 7);
}

TEST_F(AuditLogTest, LinesLongerThanWhatIsReadAtOnce) {
  const std::string data = StrCat("{\"text\":\"", std::string(300000, 'x'), "\"}");
  AppendAndWait(Open().get(), data);
  const std::string text = Text();
  Write(text.substr(0, text.find("\"stop\"") - 1000));  // cut off within the long one
  Open();
  const auto summary = Verify(Text());
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->torn, 1);
  EXPECT_EQ(summary->tail.seq, 2);
}

// Files of this process may not grow while it lives: a full disk.
class FullDisk {
 public:
  explicit FullDisk(const std::string& file, rlim_t spare) {
    std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = std::filesystem::file_size(file) + spare;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

TEST_F(AuditLogTest, AFullDiskRefusesRequestsAndLosesNothing) {
  const auto log = Open();
  AppendAndWait(log.get(), "{}");
  EXPECT_TRUE(log->Accepting().ok());
  {
    const FullDisk full(options_.file, 10);  // a line may be cut in the middle
    AppendAndWait(log.get(), "{\"n\":1}");
    EXPECT_EQ(log->Accepting().code(), absl::StatusCode::kUnavailable);
    EXPECT_GT(observer_.failed, 0);
    AppendAndWait(log.get(), "{\"n\":2}");  // those under way still end
    EXPECT_EQ(observer_.pending, 2);
  }
  for (int i = 0; i < 200 && !log->Accepting().ok(); ++i) absl::SleepFor(absl::Milliseconds(20));
  EXPECT_TRUE(log->Accepting().ok());
  const auto summary = Verify(Text());
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->tail.seq, 3);
  EXPECT_EQ(observer_.committed, 3);
  EXPECT_EQ(observer_.lost, 0);
}

TEST_F(AuditLogTest, WhatTheQueueHasNoRoomForIsCountedInTheLog) {
  options_.refuse_on_failure = false;
  options_.queue_bytes = 4096;
  auto log = Open();
  AppendAndWait(log.get(), "{}");
  {
    const FullDisk full(options_.file, 0);
    const std::string data = StrCat("{\"text\":\"", std::string(1000, 'x'), "\"}");
    for (int i = 0; i < 8; ++i) AppendAndWait(log.get(), data);
    EXPECT_TRUE(log->Accepting().ok());
    EXPECT_EQ(observer_.lost, 5);
  }
  log.reset();
  ASSERT_TRUE(Verify(Text()).ok());
  const std::vector<std::string> lines = LinesOf(Text());
  int64_t lost = 0;
  for (const std::string& line : lines) {
    const json record = json::parse(line);
    if (record["kind"] == "gap") lost += record["data"]["lost"].get<int64_t>();
  }
  EXPECT_EQ(lost, 5);
  EXPECT_EQ(json::parse(lines.back())["kind"], "stop");
}

TEST_F(AuditLogTest, NoticesAFileThatAnotherHandChanged) {
  const auto log = Open();
  AppendAndWait(log.get(), "{}");
  std::filesystem::resize_file(options_.file, std::filesystem::file_size(options_.file) - 5);
  AppendAndWait(log.get(), "{}");
  EXPECT_FALSE(log->Accepting().ok());
}

TEST_F(AuditLogTest, NoticesAFileThatWasDeleted) {
  const auto log = Open();
  AppendAndWait(log.get(), "{}");
  std::filesystem::remove(options_.file);
  AppendAndWait(log.get(), "{}");
  EXPECT_FALSE(log->Accepting().ok());
}

class AuditedServer : public ServerTest {
 protected:
  ~AuditedServer() override { StopAll(); }

  void StartAudited(bool text = false) {
    auto log = AuditLog::Open({.file = folder_.File("audit.jsonl"), .text = text}, Clock::Real(),
                              &audit_observer_);
    ASSERT_TRUE(log.ok()) << log.status();
    log_ = *std::move(log);
    StartServer(true, log_.get());
  }
  // The records of kind "request", once all have been written.
  std::vector<json> Requests() {
    StopAll();
    log_.reset();
    const std::string text = ReadAll(folder_.File("audit.jsonl"));
    EXPECT_TRUE(Verify(text).ok()) << Verify(text).status();
    std::vector<json> out;
    for (const std::string& line : LinesOf(text)) {
      const json record = json::parse(line);
      if (record["kind"] == "request") out.push_back(record["data"]);
    }
    return out;
  }

  TempFolder folder_;
  AuditObserver audit_observer_;
  std::unique_ptr<AuditLog> log_;
};

TEST_F(AuditedServer, OneRecordARequestWithoutItsText) {
  AnswerWith({"wor", "ld"});
  StartAudited();
  const RawResponse response =
      Post("/v1/completions",
           {{"prompt", {"hello", "ab"}}, {"max_tokens", 5}, {"seed", 7}, {"stop", "secret"}},
           "X-Request-Id: req-42\r\n");
  ASSERT_EQ(response.status, 200) << response.body;
  // The answer came: the record is on disk.
  EXPECT_EQ(LinesOf(ReadAll(folder_.File("audit.jsonl"))).size(), 2u);
  EXPECT_EQ(Post("/v1/completions", {{"prompt", "x"}, {"max_tokens", -1}}).status, 400);
  const auto requests = Requests();
  ASSERT_EQ(requests.size(), 1u);
  const json& data = requests[0];
  EXPECT_EQ(data["id"], Json(response)["id"]);
  EXPECT_EQ(data["request_id"], "req-42");
  EXPECT_EQ(data["api"], "completion");
  EXPECT_EQ(data["plan_digest"], "fedcba9876543210");
  EXPECT_EQ(data["prompt_sha256"], model::Sha256Hex("104,101,108,108,111;97,98"));
  EXPECT_EQ(data["sampling"]["seed"], "7");
  EXPECT_EQ(data["sampling"]["max_tokens"], 5);
  EXPECT_EQ(data["sampling"]["stop"], 1);
  EXPECT_EQ(data["outcome"]["status"], "OK");
  EXPECT_EQ(data["outcome"]["finish"], json({"stop", "stop"}));
  EXPECT_EQ(data["outcome"]["prompt_tokens"], 7);
  EXPECT_EQ(data["outcome"]["generated_tokens"], 4);
  const std::string all = ReadAll(folder_.File("audit.jsonl"));
  for (const char* text : {"hello", "wor", "secret"}) {
    EXPECT_EQ(all.find(text), std::string::npos) << text;
  }
}

TEST_F(AuditedServer, TextOnlyWhereItIsAskedFor) {
  AnswerWith({"wor", "ld"});
  StartAudited(/*text=*/true);
  ASSERT_EQ(Post("/v1/completions", {{"prompt", "hello"}, {"max_tokens", 5}}).status, 200);
  const auto requests = Requests();
  ASSERT_EQ(requests.size(), 1u);
  EXPECT_EQ(requests[0]["prompt_texts"], json({"hello"}));
  EXPECT_EQ(requests[0]["outcome"]["outputs"], json({"world"}));
}

TEST_F(AuditedServer, StreamsEndAfterTheirRecord) {
  AnswerWith({"a", "b", "c"}, engine::FinishReason::kLength);
  StartAudited();
  const RawResponse response =
      Post("/v1/completions", {{"prompt", "x"}, {"stream", true}, {"max_tokens", 3}});
  ASSERT_EQ(response.status, 200);
  EXPECT_FALSE(Chunks(response).empty());
  EXPECT_EQ(LinesOf(ReadAll(folder_.File("audit.jsonl"))).size(), 2u);
  const auto requests = Requests();
  ASSERT_EQ(requests.size(), 1u);
  EXPECT_EQ(requests[0]["outcome"]["finish"], json({"length"}));
}

TEST_F(AuditedServer, ErrorsAndLostClientsAreRecorded) {
  engine_.set_script([](const engine::GenerationRequest& request) {
    return std::vector<engine::OutputEvent>{
        EndEvent(request, 0, absl::DeadlineExceededError("too late"))};
  });
  StartAudited();
  EXPECT_EQ(Post("/v1/completions", {{"prompt", "x"}}).status, 504);
  engine_.set_script([](const engine::GenerationRequest&) {
    return std::vector<engine::OutputEvent>{DeltaEvent("a", 'a'), DeltaEvent("b", 'b')};
  });
  {
    RawClient client(port());
    client.Send(MakeRequest("POST", "/v1/completions",
                            json({{"prompt", "xyz"}, {"stream", true}, {"max_tokens", 9}}).dump()));
    ASSERT_NE(engine_.WaitRequest(1), nullptr);
    client.ReadUntil("data: ");
  }
  EXPECT_TRUE(engine_.WaitLive(0));
  const auto requests = Requests();
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_EQ(requests[0]["outcome"]["status"], "DEADLINE_EXCEEDED");
  EXPECT_EQ(requests[1]["outcome"]["status"], "CANCELLED");
  EXPECT_EQ(requests[1]["outcome"]["prompt_tokens"], 3);
}

TEST_F(AuditedServer, RefusesWhatItCannotRecord) {
  AnswerWith({"x"});
  StartAudited();
  ASSERT_EQ(Post("/v1/completions", {{"prompt", "x"}}).status, 200);
  EXPECT_EQ(Get("/health/ready").status, 200);
  {
    const FullDisk full(folder_.File("audit.jsonl"), 0);
    // Under way when it happens: answered, and recorded later.
    EXPECT_EQ(Post("/v1/completions", {{"prompt", "x"}}).status, 200);
    const RawResponse refused = Post("/v1/completions", {{"prompt", "x"}});
    EXPECT_EQ(refused.status, 503);
    EXPECT_THAT(refused.body, ::testing::HasSubstr("audit log"));
    EXPECT_EQ(Get("/health/ready").status, 503);
  }
  EXPECT_EQ(Requests().size(), 2u);
}

}  // namespace
}  // namespace longstride::testing
