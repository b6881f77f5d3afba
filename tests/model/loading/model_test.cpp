#include "model/model.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/available_memory.h"
#include "tests/testing/gguf_writer.h"
#include "tests/testing/temp_folder.h"
#include "tests/testing/tiny_llama.h"

namespace longstride::model {
namespace {

using ::testing::Contains;
using testing::GgufWriter;
using ::testing::HasSubstr;
using testing::TempFolder;
using testing::TinyLlama;

std::string WriteFile(const TempFolder& folder, const GgufWriter& writer) {
  return folder.Write("tiny.gguf", writer.Finish());
}

ModelOptions Options(const std::string& path) {
  ModelOptions options;
  options.path = path;
  options.kv_budget_bytes = 8 << 20;
  options.max_step_tokens = 64;
  options.backend_options.num_threads = 1;
  return options;
}

std::string ErrorOf(const ModelOptions& options, absl::StatusCode code) {
  const auto model = Model::Load(options);
  EXPECT_EQ(model.status().code(), code) << model.status();
  return std::string(model.status().message());
}

// Runs the tokens from `first` on as one sequence whose pages are 0, 1, 2 …
absl::Status Step(Model* model, int32_t first, const std::vector<int32_t>& tokens, int32_t logits,
                  ModelOutput* output) {
  ModelInput input;
  input.num_sequences = 1;
  input.token_ids = tokens;
  const auto count = static_cast<int32_t>(tokens.size());
  input.runs.push_back({.first_position = first, .num_tokens = count, .num_logits = logits});
  for (size_t g = 0; g < model->plan().groups.size(); ++g) {
    GroupPageTable table;
    table.stride = (first + count + kernels::kPageTokens - 1) / kernels::kPageTokens;
    for (int32_t p = 0; p < table.stride; ++p) table.pages.push_back(p);
    input.page_tables.push_back(std::move(table));
  }
  return model->Forward(input, output);
}

TEST(Model, LoadsATinyCheckpoint) {
  const TempFolder folder;
  GgufWriter writer = TinyLlama();
  writer.SetString("tokenizer.chat_template", "{{ messages[0]['content'] }}");
  auto model = Model::Load(Options(WriteFile(folder, writer)));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->name(), "Tiny");
  EXPECT_EQ((*model)->max_context(), 512);
  EXPECT_EQ((*model)->spec().family, "llama");
  EXPECT_EQ((*model)->model_digest().size(), 32u);
  EXPECT_THAT((*model)->defaults().eos_ids, Contains(2));
  ASSERT_NE((*model)->chat_template(), nullptr);
  EXPECT_EQ((*model)->chat_template()->source(), "{{ messages[0]['content'] }}");
  EXPECT_EQ((*model)->cache().options().budget_bytes, 8 << 20);
  const auto ids = (*model)->tokenizer().Encode("ab");
  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(*ids, Contains((*model)->tokenizer().FindToken("ab").value()));
  ModelOutput output;
  ASSERT_TRUE(Step(model->get(), 0, *ids, 1, &output).ok());
  EXPECT_EQ(output.logits.shape[1], testing::kTinyVocab);
}

TEST(Model, TakesNameContextPlanAndTemplateFromItsOptions) {
  const TempFolder folder;
  ModelOptions options = Options(WriteFile(folder, TinyLlama()));
  options.served_name = "mine";
  options.max_context = 300;
  options.chat_template = "hello";
  options.policy =
      *SparsityPolicy::Parse(R"({"name": "w", "default": {"pattern": "window", "window": 100}})");
  const auto model = Model::Load(options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->name(), "mine");
  EXPECT_EQ((*model)->max_context(), 300);
  EXPECT_EQ((*model)->plan().name, "w");
  EXPECT_EQ((*model)->plan().groups[0].name, "window100");
  EXPECT_EQ((*model)->chat_template()->source(), "hello");
  // Positions past the served context are refused, though the checkpoint has them.
  ModelOutput output;
  EXPECT_EQ(Step(model->get(), 290, std::vector<int32_t>(11, 5), 1, &output).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Model, ExplainsWhyItDoesNotLoad) {
  const TempFolder folder;
  const std::string path = WriteFile(folder, TinyLlama());
  EXPECT_THAT(ErrorOf(Options(folder.path() + "/absent.gguf"), absl::StatusCode::kNotFound),
              HasSubstr("cannot load the model"));
  ModelOptions options = Options(path);
  options.max_context = 1000;
  EXPECT_THAT(ErrorOf(options, absl::StatusCode::kInvalidArgument),
              ::testing::AllOf(HasSubstr("1000"), HasSubstr("512")));
  options = Options(path);
  options.max_context = -1;
  EXPECT_THAT(ErrorOf(options, absl::StatusCode::kInvalidArgument), HasSubstr("-1"));
  options = Options(path);
  options.kv_budget_bytes = 100;
  EXPECT_THAT(ErrorOf(options, absl::StatusCode::kResourceExhausted), HasSubstr("100 bytes"));
  options = Options(path);
  options.kv_budget_bytes = 0;
  options.kv_memory_fraction = 1.5;
  EXPECT_THAT(ErrorOf(options, absl::StatusCode::kInvalidArgument), HasSubstr("1.5"));
  options = Options(path);
  options.max_step_tokens = 0;
  EXPECT_THAT(ErrorOf(options, absl::StatusCode::kInvalidArgument), HasSubstr("got 0"));
  options = Options(path);
  options.policy = *SparsityPolicy::Parse(R"({"layers": [{"layers": "7", "pattern": "dense"}]})");
  EXPECT_THAT(ErrorOf(options, absl::StatusCode::kInvalidArgument), HasSubstr("names layer 7"));
  options = Options(path);
  options.chat_template = "{% if %}";
  EXPECT_THAT(ErrorOf(options, absl::StatusCode::kInvalidArgument), HasSubstr("cannot load"));
  options = Options(path);
  options.backend_options.isa = "z80";
  EXPECT_THAT(ErrorOf(options, absl::StatusCode::kInvalidArgument), HasSubstr("z80"));
}

// Whatever is cut off or changed, loading ends in a status.
TEST(Model, SurvivesDamagedFiles) {
  const TempFolder folder;
  const std::vector<uint8_t> good = TinyLlama().Finish();
  const unsigned seed = 31;
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  int loaded = 0;
  for (int round = 0; round < 60; ++round) {
    std::vector<uint8_t> bytes = good;
    if (round % 2 == 0) bytes.resize(random() % bytes.size());
    for (int e = 0; e < 3 && !bytes.empty(); ++e) {
      bytes[random() % std::min<size_t>(bytes.size(), 9000)] = static_cast<uint8_t>(random());
    }
    auto model = Model::Load(Options(folder.Write("damaged.gguf", bytes)));
    if (!model.ok()) continue;
    ++loaded;
    ModelOutput output;
    (void)Step(model->get(), 0, {1, 2, 3}, 3, &output);
  }
  EXPECT_LT(loaded, 60);
}

TEST(Model, ChoosesAShareOfTheMemoryThatIsLeft) {
  const TempFolder folder;
  ModelOptions options = Options(WriteFile(folder, TinyLlama()));
  options.kv_budget_bytes = 0;
  options.kv_memory_fraction = 0.01;
  const auto available = AvailableMemory();
  ASSERT_TRUE(available.ok());
  const auto model = Model::Load(options);
  ASSERT_TRUE(model.ok()) << model.status();
  const auto budget = static_cast<double>((*model)->cache().options().budget_bytes);
  EXPECT_GT(budget, 0);
  // Other processes come and go meanwhile.
  EXPECT_LT(budget, 0.02 * static_cast<double>(*available) + 1e8);
}

TEST(AvailableMemory, IsTheSmallerOfSystemAndControlGroup) {
  const TempFolder folder;
  const std::string root = folder.path();
  const auto write = [&](const std::string& name, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root + "/" + name).parent_path());
    std::ofstream(root + "/" + name) << text;
  };
  const auto get = [&] { return AvailableMemory(root + "/proc", root + "/cgroup"); };
  EXPECT_EQ(get().status().code(), absl::StatusCode::kUnavailable);
  write("proc/meminfo", "MemTotal:  9000 kB\nMemAvailable:    1000 kB\n");
  EXPECT_EQ(*get(), 1000 * 1024);
  write("cgroup/memory.max", "max\n");
  write("cgroup/memory.current", "5000\n");
  EXPECT_EQ(*get(), 1000 * 1024);
  write("cgroup/memory.max", "600000\n");
  write("cgroup/memory.current", "500000\n");
  EXPECT_EQ(*get(), 100000);
  // Page cache that the kernel drops first does not count as used.
  write("cgroup/memory.stat", "anon 3\ninactive_file 200000\n");
  EXPECT_EQ(*get(), 300000);
  write("cgroup/memory.current", "700000\n");
  write("cgroup/memory.stat", "inactive_file 0\n");
  EXPECT_EQ(*get(), 0);
}

// The models of scripts/fetch_models.py, where they have been fetched.
class RealModelTest : public ::testing::Test {
 protected:
  std::unique_ptr<Model> Load(const std::string& file) {
    const char* folder = std::getenv("LONGSTRIDE_TEST_MODELS");
    const std::string path = StrCat(folder != nullptr ? folder : "models", "/", file);
    if (!std::filesystem::exists(path)) return nullptr;
    ModelOptions options;
    options.path = path;
    options.kv_budget_bytes = int64_t{1} << 30;
    auto model = Model::Load(options);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? *std::move(model) : nullptr;
  }

  static std::string Continue(Model* model, const std::string& prompt, int count) {
    std::vector<int32_t> ids = *model->tokenizer().Encode(prompt);
    ModelOutput output;
    EXPECT_TRUE(Step(model, 0, ids, 1, &output).ok());
    auto position = static_cast<int32_t>(ids.size());
    std::vector<int32_t> generated;
    for (int i = 0; i < count; ++i) {
      const float* logits = output.logits.ptr<float>();
      const auto best =
          static_cast<int32_t>(std::max_element(logits, logits + output.logits.shape[1]) - logits);
      generated.push_back(best);
      EXPECT_TRUE(Step(model, position++, {best}, 1, &output).ok());
    }
    return *model->tokenizer().Decode(generated, true);
  }

  // Bits of the last logits, however the prompt was cut.
  static void CheckChunking(Model* model) {
    std::string text;
    for (int i = 0; i < 90; ++i) StrAppend(&text, "Line ", i, " of the log says ", i * i, ".\n");
    std::vector<int32_t> ids = *model->tokenizer().Encode(text);
    ids.resize(std::min<size_t>(ids.size(), 700));
    const auto last_logits = [&](size_t chunk) {
      ModelOutput output;
      for (size_t at = 0; at < ids.size(); at += chunk) {
        const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(at);
        const auto end =
            ids.begin() + static_cast<std::ptrdiff_t>(std::min(at + chunk, ids.size()));
        EXPECT_TRUE(Step(model, static_cast<int32_t>(at), {begin, end}, 1, &output).ok());
      }
      const float* logits = output.logits.ptr<float>();
      return std::vector<float>(logits, logits + output.logits.shape[1]);
    };
    const std::vector<float> reference = last_logits(512);
    for (const size_t chunk : {37, 100, 256}) EXPECT_EQ(last_logits(chunk), reference) << chunk;
    // The last 30 tokens one by one.
    const std::vector<int32_t> tail(ids.end() - 30, ids.end());
    ids.resize(ids.size() - 30);
    last_logits(512);
    ModelOutput output;
    auto position = static_cast<int32_t>(ids.size());
    for (const int32_t id : tail) EXPECT_TRUE(Step(model, position++, {id}, 1, &output).ok());
    const float* logits = output.logits.ptr<float>();
    EXPECT_EQ(std::vector<float>(logits, logits + output.logits.shape[1]), reference);
  }
};

TEST_F(RealModelTest, Gemma3ContinuesSensiblyWhateverTheChunks) {
  const auto model = Load("gemma-3-270m-q4_k_m.gguf");
  if (model == nullptr) GTEST_SKIP() << "the model has not been fetched";
  EXPECT_EQ(model->plan().groups.size(), 2u);
  EXPECT_THAT(Continue(model.get(), "The capital of France is", 12), HasSubstr("France"));
  CheckChunking(model.get());
}

TEST_F(RealModelTest, SmolLm2ContinuesSensiblyWhateverTheChunks) {
  const auto model = Load("SmolLM2-135M-Instruct.Q4_1.gguf");
  if (model == nullptr) GTEST_SKIP() << "the model has not been fetched";
  EXPECT_NE(model->chat_template(), nullptr);
  EXPECT_THAT(Continue(model.get(), "The capital of France is", 12), HasSubstr("Paris"));
  CheckChunking(model.get());
}

}  // namespace
}  // namespace longstride::model
