#include "model/fidelity/tasks.h"

#include <algorithm>
#include <set>

#include "model/fidelity/task_scores.h"
#include "model/fidelity/text_windows.h"
#include "tests/model/fidelity/tiny_lanes.h"

namespace longstride::model::fidelity {
namespace {

using TasksTest = TinyLanes;

TEST_F(TasksTest, ContextsFitAndHoldTheAnswer) {
  const Tokenizer& tokenizer = model_->tokenizer();
  for (const TaskKind kind : kTaskKinds) {
    for (const int32_t length : {900, 2048}) {
      const uint64_t seed = random_();
      const auto task = MakeTask(tokenizer, kind, length, seed);
      ASSERT_TRUE(task.ok()) << TaskName(kind) << task.status();
      size_t longest = 0;
      const std::string text = tokenizer.Decode(task->tokens, true).value();
      for (const TaskQuestion& question : task->questions) {
        ASSERT_EQ(question.candidates.size(), 4u);
        EXPECT_EQ(std::set(question.candidates.begin(), question.candidates.end()).size(), 4u);
        ASSERT_GE(question.right, 0);
        ASSERT_LT(question.right, 4);
        for (const auto& candidate : question.candidates) {
          ASSERT_FALSE(candidate.empty());
          longest = std::max(longest, question.tail.size() + candidate.size());
        }
      }
      const size_t total = task->tokens.size() + longest;
      EXPECT_LE(total, static_cast<size_t>(length)) << TaskName(kind);
      EXPECT_GE(total, static_cast<size_t>(length) - 120) << TaskName(kind);
      // Deterministic, and another seed tells another story.
      EXPECT_EQ(MakeTask(tokenizer, kind, length, seed)->tokens, task->tokens);
      EXPECT_NE(MakeTask(tokenizer, kind, length, seed + 1)->tokens, task->tokens);
      if (kind == TaskKind::kSingleKey) {
        const TaskQuestion& question = task->questions[0];
        std::vector<int32_t> answer = question.tail;
        const auto& right = question.candidates[static_cast<size_t>(question.right)];
        answer.insert(answer.end(), right.begin(), right.end());
        const std::string all = tokenizer.Decode(answer, true).value();
        EXPECT_NE(text.find(all.substr(all.find("The access code"))), std::string::npos) << all;
      }
    }
  }
  EXPECT_FALSE(MakeTask(tokenizer, TaskKind::kMultiKey, 100, 1).ok());
}

TEST_F(TasksTest, EqualPlansAnswerAlike) {
  const auto base = MakeLane(Native(), 1024);
  const auto same = MakeLane(Native(), 1024);
  const auto options =
      LaneOptions{.kv_dtype = model_->options().kv_dtype, .max_tokens = 1024, .step_tokens = 512};
  auto wide_base = Lane::Create(model_.get(), Native(), options);
  auto wide_same = Lane::Create(model_.get(), Native(), options);
  const auto task = MakeTask(model_->tokenizer(), TaskKind::kMultiKey, 1000, random_());
  ASSERT_TRUE(task.ok()) << task.status();
  std::vector<TaskPair> pairs;
  // A step of 64 bytes does not hold a question.
  EXPECT_FALSE(AnswerTask(*task, 0, testing::kTinyVocab, base.get(), same.get(), &pairs).ok());
  ASSERT_TRUE(
      AnswerTask(*task, 0, testing::kTinyVocab, wide_base->get(), wide_same->get(), &pairs).ok());
  ASSERT_EQ(pairs.size(), 4u);
  for (const TaskPair& pair : pairs) EXPECT_EQ(pair.base_margin, pair.plan_margin);
}

TEST(TaskScoresTest, PairsAreCountedAndTheWorstIsNamed) {
  const auto pair = [](TaskKind kind, int32_t tokens, int32_t context, double base, double plan) {
    return TaskPair{kind, tokens, context, base, plan};
  };
  const std::vector<TaskPair> pairs = {
      pair(TaskKind::kSingleKey, 100, 0, 1, 1),  pair(TaskKind::kSingleKey, 100, 1, 1, -1),
      pair(TaskKind::kSingleKey, 200, 2, 1, -1), pair(TaskKind::kSingleKey, 200, 3, 2, -2),
      pair(TaskKind::kCounting, 100, 4, -1, 1),
  };
  const auto results = SummarizeTasks(pairs, {});
  ASSERT_EQ(results.size(), std::size(kTaskKinds) * 3);
  const TaskResult& single = results[0];
  EXPECT_EQ(single.name, "single_key");
  EXPECT_EQ(single.tokens, 100);
  EXPECT_EQ(single.questions, 2);
  EXPECT_EQ(single.base_accuracy.value, 1);
  EXPECT_EQ(single.plan_accuracy.value, 0.5);
  EXPECT_EQ(single.accuracy_change.value, -0.5);
  EXPECT_EQ(single.margin_change.value, -1);
  EXPECT_EQ(single.only_base_right, 1);
  EXPECT_EQ(single.mcnemar_p, 1);
  EXPECT_EQ(WorstTask(results), 1);  // single_key at 200
  const TaskResult& all = results[std::size(kTaskKinds) * 2];
  EXPECT_EQ(all.tokens, 0);
  EXPECT_EQ(all.questions, 4);
  EXPECT_EQ(all.only_base_right, 3);
  EXPECT_EQ(WorstTask({}), -1);
}

using TextWindowsTest = TinyLanes;

TEST_F(TextWindowsTest, TakesDocumentsInTurn) {
  const Tokenizer& tokenizer = model_->tokenizer();
  const std::vector<Document> documents = {
      {"a", std::string(500, 'x')}, {"b", std::string(40, 'y')}, {"c", std::string(1000, 'z')}};
  const auto set = CutWindows(tokenizer, documents, {.window_tokens = 100, .max_tokens = 799});
  ASSERT_TRUE(set.ok()) << set.status();
  std::vector<int32_t> order;
  for (const TextWindow& window : set->windows) {
    EXPECT_EQ(window.tokens.size(), 100u);
    EXPECT_EQ(window.tokens[0], tokenizer.prefix_ids()[0]);
    order.push_back(window.document);
  }
  EXPECT_EQ(order, (std::vector<int32_t>{0, 2, 0, 2, 0, 2, 0}));
  EXPECT_EQ(set->document_tokens, (std::vector<int64_t>{400, 0, 300}));
}

TEST_F(TextWindowsTest, RefusesWhatGivesNoWindows) {
  const Tokenizer& tokenizer = model_->tokenizer();
  const auto error = [&](const std::vector<Document>& documents, int32_t window, int64_t budget) {
    return std::string(
        CutWindows(tokenizer, documents, {.window_tokens = window, .max_tokens = budget})
            .status()
            .message());
  };
  EXPECT_NE(error({}, 100, 1000).find("--data"), std::string::npos);
  EXPECT_NE(error({{"a", "short"}}, 100, 1000).find("too short"), std::string::npos);
  EXPECT_NE(error({{"a", std::string(150, 'x')}}, 100, 1000).find("one window"), std::string::npos);
  EXPECT_NE(error({{"a", std::string(500, 'x')}}, 100, 150).find("--max-tokens"),
            std::string::npos);
  EXPECT_NE(error({{"bad", "\xff\xfe" + std::string(500, 'x')}}, 100, 1000).find("bad"),
            std::string::npos);
}

}  // namespace
}  // namespace longstride::model::fidelity
