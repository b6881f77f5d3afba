#include "server/engine/cost_model.h"

#include <cmath>
#include <random>

#include "gtest/gtest.h"
#include "server/engine/fair_share.h"

namespace longstride::engine {
namespace {

struct Machine {
  double step, token, key, row;
  double Time(const StepWork& w) const {
    return step + token * w.tokens + key * w.keys + row * w.logits;
  }
};

StepWork Chunk(double tokens, double position) {
  return {.tokens = tokens, .keys = tokens * position, .logits = 0};
}

TEST(CostModel, LearnsAMachineFromItsSteps) {
  for (const Machine& machine : {Machine{5e-3, 4e-4, 3e-8, 3e-3}, Machine{1e-4, 2e-6, 1e-10, 1e-5},
                                 Machine{0.1, 2e-2, 1e-6, 5e-2}}) {
    std::mt19937_64 random(1);
    CostModel model;
    for (int i = 0; i < 80; ++i) {
      const bool prefill = i % 3 != 0;
      StepWork work;
      if (prefill) work = Chunk(static_cast<double>(64 + random() % 448), random() % 30000);
      const auto rows = static_cast<double>(1 + random() % 8);
      work += {.tokens = rows, .keys = rows * static_cast<double>(random() % 3000), .logits = rows};
      model.Observe(work, prefill, machine.Time(work));
    }
    for (const double tokens : {64.0, 512.0}) {
      for (const double position : {0.0, 5000.0, 25000.0}) {
        const StepWork work = Chunk(tokens, position);
        EXPECT_NEAR(model.cost().Step(work) / machine.Time(work), 1.0, 0.1)
            << tokens << " tokens at " << position;
      }
    }
  }
}

TEST(CostModel, KeepsWhatPrefillCostsThroughLongDecoding) {
  const Machine machine{5e-3, 4e-4, 3e-8, 3e-3};
  CostModel model;
  for (int i = 0; i < 60; ++i) {
    const StepWork work = Chunk(512, 500.0 * i);
    model.Observe(work, true, machine.Time(work));
  }
  for (int i = 0; i < 20'000; ++i) {
    const StepWork work{.tokens = 4, .keys = 8000, .logits = 4};
    model.Observe(work, false, machine.Time(work));
  }
  const StepWork work = Chunk(512, 10'000);
  EXPECT_NEAR(model.cost().Step(work) / machine.Time(work), 1.0, 0.1);
}

TEST(CostModel, FollowsAMachineThatGetsSlower) {
  const Machine fast{5e-3, 4e-4, 3e-8, 3e-3};
  CostModel model;
  for (int i = 0; i < 60; ++i) {
    const StepWork work = Chunk(256, 100.0 * i);
    model.Observe(work, true, fast.Time(work));
  }
  for (int i = 0; i < 12; ++i) {
    const StepWork work = Chunk(256, 6000);
    model.Observe(work, true, 2 * fast.Time(work));
  }
  const StepWork work = Chunk(256, 6000);
  EXPECT_GT(model.cost().Step(work), 1.6 * fast.Time(work));
}

// However much steps vary, one in a hundred exceeds what is said.
TEST(CostModel, SaysHowLateStepsGet) {
  for (const double spread : {0.02, 0.1}) {
    const Machine machine{5e-3, 4e-4, 3e-8, 3e-3};
    std::mt19937_64 random(7);
    std::normal_distribution<double> noise(0.0, spread);
    CostModel model;
    int late = 0;
    for (int i = 0; i < 6000; ++i) {
      const StepWork work =
          Chunk(static_cast<double>(64 + random() % 448), static_cast<double>(random() % 30000));
      const double seconds = machine.Time(work) * std::exp(noise(random));
      if (i >= 2000 && seconds > model.cost().late * model.cost().Step(work)) ++late;
      model.Observe(work, true, seconds);
    }
    EXPECT_GT(late, 10) << spread;
    EXPECT_LT(late, 120) << spread;
  }
}

TEST(CostModel, ForgetsOneStall) {
  const Machine machine{5e-3, 4e-4, 3e-8, 3e-3};
  CostModel model;
  const StepWork work = Chunk(256, 3000);
  for (int i = 0; i < 60; ++i) model.Observe(Chunk(256, 100.0 * i), true, machine.Time(Chunk(256, 100.0 * i)));
  model.Observe(work, true, 1000 * machine.Time(work));
  for (int i = 0; i < 12; ++i) model.Observe(work, true, machine.Time(work));
  EXPECT_NEAR(model.cost().Step(work) / machine.Time(work), 1.0, 0.3);
}

TEST(CostModel, IgnoresNonsense) {
  CostModel model;
  const double before = model.cost().Step(Chunk(100, 100));
  model.Observe(Chunk(100, 100), true, 0);
  model.Observe(Chunk(100, 100), true, -1);
  model.Observe(Chunk(100, 100), true, std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(model.cost().Step(Chunk(100, 100)), before);
}

TEST(FairShare, LiftsAClientThatComesBack) {
  FairShare share;
  const int32_t a = share.Join("a");
  share.Charge(a, 1000);
  const int32_t b = share.Join("b");
  EXPECT_EQ(share.counter(b), 1000);  // no credit for having been away
  share.Charge(b, 10);
  share.Leave(b);
  share.Charge(a, 500);
  EXPECT_EQ(share.counter(share.Join("b")), 1500);
  share.Leave(a);
}

TEST(FairShare, KeepsADebtThroughAPause) {
  FairShare share;
  const int32_t a = share.Join("a"), b = share.Join("b");
  share.Charge(a, 1000);
  share.Leave(a);
  EXPECT_EQ(share.Join("a"), a);
  EXPECT_EQ(share.counter(a), 1000);
  EXPECT_EQ(share.counter(b), 0);
}

TEST(FairShare, WeighsLongContextsByTheirKeys) {
  EXPECT_GT(FairShare::TokenWork(100'000, false), 10 * FairShare::TokenWork(1000, false));
  EXPECT_EQ(FairShare::TokenWork(0, true), 2 * FairShare::TokenWork(0, false));
}

TEST(FairShare, RemembersABoundedNumberOfClients) {
  FairShare share;
  for (int i = 0; i < 10'000; ++i) share.Leave(share.Join(std::to_string(i)));
  EXPECT_LE(share.num_known_clients(), 4097);
}

}  // namespace
}  // namespace longstride::engine
