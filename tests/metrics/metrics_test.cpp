#include "server/metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

namespace longstride::metrics {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class FakeEngine : public engine::Engine {
 public:
  absl::StatusOr<std::unique_ptr<engine::RequestHandle>> Submit(engine::GenerationRequest request,
                                                                std::function<void()>) override {
    return absl::UnimplementedError("not used");
  }
  engine::EngineStatus Status() const override { return status; }
  void BeginDrain() override {}
  bool WaitIdle(absl::Duration) override { return true; }
  void Stop() override {}
  engine::EngineStatus status;
};

ModelFacts Facts() {
  ModelFacts facts;
  facts.name = "tiny";
  facts.kv_dtype = "f16";
  facts.kv_budget_bytes = 64000;
  facts.max_context = 4096;
  model::CacheGroup full;
  full.name = "full";
  full.page_bytes = 1000;
  model::CacheGroup window;
  window.name = "window512";
  window.retention.window = 512;
  window.page_bytes = 4000;
  facts.groups = {full, window};
  facts.patterns = {"dense", "window(512)"};
  return facts;
}

class MetricsTest : public ::testing::Test {
 protected:
  MetricsTest() : metrics_({.gateway_aliases = true}, Clock::Real()) {
    metrics_.DescribeModel(Facts());
    metrics_.WatchEngine(&engine_);
  }

  FakeEngine engine_;
  Metrics metrics_;
};

TEST(MetricTable, IsInTheOrderOfItsIdsAndNamesAreUnique) {
  std::set<std::string_view> names;
  const std::vector<Metric>& table = MetricTable();
  ASSERT_EQ(table.size(), static_cast<size_t>(MetricId::kCount));
  for (size_t i = 0; i < table.size(); ++i) {
    EXPECT_EQ(static_cast<size_t>(table[i].id), i) << table[i].name;
    EXPECT_TRUE(names.insert(table[i].name).second) << table[i].name;
    EXPECT_FALSE(table[i].help.empty()) << table[i].name;
  }
}

TEST(MetricTable, NamesFollowPrometheusConventions) {
  const std::regex valid("(longstride:|vllm:|process_)[a-z0-9_]+");
  for (const Metric& metric : MetricTable()) {
    EXPECT_TRUE(std::regex_match(std::string(metric.name), valid)) << metric.name;
    const bool total = metric.name.ends_with("_total");
    EXPECT_EQ(total, metric.type == MetricType::kCounter) << metric.name;
    EXPECT_EQ(metric.buckets.empty(), metric.type != MetricType::kHistogram) << metric.name;
    EXPECT_TRUE(std::is_sorted(metric.buckets.begin(), metric.buckets.end())) << metric.name;
  }
}

TEST(MetricTable, LongPromptsFitTheBuckets) {
  const auto last = [](MetricId id) { return MetricTable()[static_cast<size_t>(id)].buckets.back(); };
  EXPECT_EQ(last(MetricId::kTimeToFirstToken), 2560);
  EXPECT_EQ(last(MetricId::kRequestPromptTokens), 1 << 21);
}

// When this fails after a change of metrics, run
//   longstride reference metrics > docs/metrics.md
TEST(MetricTable, PageIsCurrent) {
  std::ifstream in(std::string(LONGSTRIDE_SOURCE_DIR) + "/docs/metrics.md");
  std::stringstream text;
  text << in.rdbuf();
  EXPECT_EQ(text.str(), MetricsMarkdown());
}

TEST_F(MetricsTest, ScrapeShowsTheEnginesState) {
  engine_.status = {.health = engine::Health::kReady,
                    .reason = "",
                    .waiting_requests = 3,
                    .waiting_prompt_tokens = 9000,
                    .running_requests = 2,
                    .kv_utilization = 0.25};
  const std::string text = metrics_.Scrape();
  EXPECT_THAT(text, HasSubstr("\nlongstride:num_requests_waiting 3\n"));
  EXPECT_THAT(text, HasSubstr("\nlongstride:prompt_tokens_waiting 9000\n"));
  EXPECT_THAT(text, HasSubstr("\nlongstride:ready 1\n"));
  EXPECT_THAT(text, HasSubstr("\nlongstride:draining 0\n"));
  EXPECT_THAT(text, HasSubstr("\nvllm:num_requests_running{model_name=\"tiny\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("\nvllm:kv_cache_usage_perc{model_name=\"tiny\"} 0.25\n"));
}

TEST_F(MetricsTest, GatewaysLearnPagesOfTheGroupsThatKeepEverything) {
  EXPECT_THAT(metrics_.Scrape(),
              HasSubstr("vllm:cache_config_info{model_name=\"tiny\",block_size=\"64\","
                        "num_gpu_blocks=\"64\"} 1\n"));
}

TEST_F(MetricsTest, AliasesCanBeTurnedOff) {
  Metrics plain({.gateway_aliases = false}, Clock::Real());
  plain.DescribeModel(Facts());
  EXPECT_THAT(plain.Scrape(), Not(HasSubstr("vllm:")));
}

TEST_F(MetricsTest, StepsFillPagesKeysAndPhases) {
  engine::StepReport report;
  report.decode_tokens = 4;
  report.prefill_tokens = 100;
  report.num_sequences = 5;
  report.plan_ns = 1000000;
  report.forward_ns = 10000000;
  report.model = {.selection_ns = 1000000, .attention_ns = 2000000, .linear_ns = 3000000,
                  .other_ns = 0};
  report.groups = {{.free = 10, .used = 20, .cached = 30, .snapshot = 0, .bytes_used = 20000},
                   {.free = 1, .used = 2, .cached = 3, .snapshot = 3, .bytes_used = 8000}};
  report.counters = {{.pattern = 1, .keys_total = 1000, .keys_visible = 100, .keys_read = 110}};
  metrics_.StepDone(report);
  const std::string text = metrics_.Scrape();
  EXPECT_THAT(text, HasSubstr("longstride:kv_pages{group=\"window512\",state=\"snapshot\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("longstride:kv_pages{group=\"full\",state=\"used\"} 20\n"));
  EXPECT_THAT(text, HasSubstr("longstride:attention_keys_total{pattern=\"window(512)\",kind=\"read\""
                              "} 110\n"));
  EXPECT_THAT(text, HasSubstr("longstride:step_phase_seconds_total{phase=\"linear\"} 0.003\n"));
  EXPECT_THAT(text, HasSubstr("longstride:step_phase_seconds_total{phase=\"other\"} 0.004\n"));
  EXPECT_THAT(text, HasSubstr("longstride:step_tokens_total{kind=\"prefill\"} 100\n"));
}

TEST_F(MetricsTest, LiveFidelityIsAbsentUntilItIsDescribed) {
  EXPECT_THAT(metrics_.Scrape(), Not(HasSubstr("longstride:shadow_local_info{")));
  EXPECT_THAT(metrics_.Scrape(), Not(HasSubstr("longstride:shadow_local_captured_mass_sum")));
  metrics_.DescribeShadow({.baseline_digest = "abc",
                           .reason = "why",
                           .layers = {{{.heads = "0-7", .pattern = "window(512)"}},
                                      {{.heads = "0-3", .pattern = "quest", .measured = true},
                                       {.heads = "4-7", .pattern = "window(512)"}}}});
  const std::string text = metrics_.Scrape();
  EXPECT_THAT(text, HasSubstr("longstride:shadow_local_info{state=\"some\",reason=\"why\","
                              "baseline_digest=\"abc\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("captured_mass_count{pattern=\"quest\"} 0\n"));
  EXPECT_THAT(text, Not(HasSubstr("captured_mass_count{pattern=\"window(512)\"")));
}

TEST_F(MetricsTest, LiveFidelityFillsPatternsAndLayers) {
  metrics_.DescribeShadow({.layers = {{{.heads = "0-7", .pattern = "quest", .measured = true}}}});
  engine::StepReport report;
  report.decode_tokens = 1;
  report.shadow = model::ShadowReport{
      .samples = {{.layer = 0, .segment = 0, .captured_mass = 0.75, .output_error = 0.5}},
      .nanos = 2000000};
  metrics_.StepDone(report);
  report.shadow->samples[0].captured_mass = 0.25;
  metrics_.StepDone(report);
  const std::string text = metrics_.Scrape();
  EXPECT_THAT(text, HasSubstr("longstride:shadow_local_steps_total 2\n"));
  EXPECT_THAT(text, HasSubstr("longstride:shadow_local_seconds_total 0.004\n"));
  EXPECT_THAT(text, HasSubstr("captured_mass_bucket{pattern=\"quest\",le=\"0.3\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("captured_mass_sum{pattern=\"quest\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("output_error_count{pattern=\"quest\"} 2\n"));
  // The first sample in full, then a sixteenth of each.
  EXPECT_THAT(text, HasSubstr("layer_captured_mass{layer=\"0\",heads=\"0-7\"} 0.71875\n"));
  EXPECT_THAT(text, HasSubstr("layer_output_error{layer=\"0\",heads=\"0-7\"} 0.5\n"));
}

TEST_F(MetricsTest, EveryEndOfARequestHasItsReason) {
  const auto finish = [&](engine::FinishReason reason, engine::AbortCause abort) {
    metrics_.Finished({.reason = reason, .abort = abort, .usage = {}});
  };
  using engine::AbortCause;
  using engine::FinishReason;
  finish(FinishReason::kStop, AbortCause::kNone);
  finish(FinishReason::kLength, AbortCause::kNone);
  finish(FinishReason::kError, AbortCause::kNone);
  finish(FinishReason::kDeadline, AbortCause::kDeadline);
  finish(FinishReason::kCancelled, AbortCause::kClient);
  finish(FinishReason::kCancelled, AbortCause::kDisconnect);
  finish(FinishReason::kCancelled, AbortCause::kSlowClient);
  finish(FinishReason::kCancelled, AbortCause::kShutdown);
  const std::string text = metrics_.Scrape();
  for (const char* reason : {"stop", "length", "error", "deadline", "abort", "disconnect",
                             "slow_client", "shutdown"}) {
    EXPECT_THAT(text, HasSubstr("longstride:requests_finished_total{reason=\"" +
                                std::string(reason) + "\"} 1\n"));
  }
}

TEST_F(MetricsTest, BucketsIncludeTheirUpperBound) {
  metrics_.FirstToken(2560);
  metrics_.FirstToken(2560.5);
  const std::string text = metrics_.Scrape();
  EXPECT_THAT(text, HasSubstr("time_to_first_token_seconds_bucket{le=\"2560\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("time_to_first_token_seconds_bucket{le=\"+Inf\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("time_to_first_token_seconds_count 2\n"));
}

TEST_F(MetricsTest, IgnoresGroupsAndPatternsThatDoNotExist) {
  metrics_.PagesFreed(7, engine::PageFreeCause::kWindow, 1);
  metrics_.PagesFreed(-1, engine::PageFreeCause::kWindow, 1);
  engine::StepReport report;
  report.counters = {{.pattern = 9}};
  report.groups.resize(5);
  report.num_sequences = 1;
  metrics_.StepDone(report);
  EXPECT_THAT(metrics_.Scrape(), HasSubstr("longstride:steps_total 1\n"));
}

TEST_F(MetricsTest, SeriesAreBounded) {
  for (int i = 0; i < 5000; ++i) {
    metrics_.Rejected("reason" + std::to_string(i));
  }
  const std::string text = metrics_.Scrape();
  EXPECT_THAT(text, HasSubstr("longstride:admission_rejections_total{reason=\"other\"}"));
  EXPECT_LT(text.size(), 256u * 1024);
}

TEST_F(MetricsTest, ScrapeStaysSmall) {
  // A busy server's label sets: all routes with a handful of statuses each.
  for (const char* route : {"/v1/chat/completions", "/v1/completions", "/v1/embeddings",
                            "/v1/models", "/tokenize", "/detokenize", "/metrics", "other"}) {
    for (const int status : {200, 400, 401, 404, 413, 429, 500, 503}) {
      metrics_.CallDone({.transport = frontend::Transport::kHttp,
                         .route = route,
                         .method = "POST",
                         .status = status});
    }
  }
  EXPECT_LE(metrics_.Scrape().size(), 64u * 1024);
}

TEST_F(MetricsTest, CountsExactlyUnderThreads) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10000; ++i) {
        metrics_.InterToken(0.01);
        metrics_.Preempted(3);
        if (i % 1000 == 0) metrics_.Scrape();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::string text = metrics_.Scrape();
  EXPECT_THAT(text, HasSubstr("longstride:inter_token_latency_seconds_count 40000\n"));
  EXPECT_THAT(text, HasSubstr("longstride:preempted_tokens_total 120000\n"));
}

TEST_F(MetricsTest, ReportsTheProcess) {
  const std::string text = metrics_.Scrape();
  EXPECT_THAT(text, Not(HasSubstr("\nprocess_resident_memory_bytes 0\n")));
  EXPECT_THAT(text, Not(HasSubstr("\nprocess_start_time_seconds 0\n")));
  EXPECT_THAT(text, HasSubstr("longstride:build_info{version=\"0.1.0\""));
}

}  // namespace
}  // namespace longstride::metrics
