#include "model/kv_budget.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace longstride::model {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

std::vector<CacheGroup> Groups() {
  std::vector<CacheGroup> groups(2);
  groups[0].layers.assign(32, 0);
  groups[0].page_bytes = 8 << 20;
  groups[1].layers.assign(16, 0);
  groups[1].page_bytes = 4 << 20;
  return groups;
}

std::string Refusal(const ModelOptions& options, const kernels::DeviceMemory& memory) {
  const absl::Status status = DeviceKvBudget(options, memory, Groups()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  return std::string(status.message());
}

TEST(KvBudget, LeavesRoomForWhatADeviceMapsAndRecords) {
  // 16 MiB for K and V of each of 48 layers, and half a GiB.
  EXPECT_EQ(BesideDeviceKv(Groups()), 2 * kGiB);
}

TEST(KvBudget, TakesAShareOfWhatIsFreeOnADevice) {
  const kernels::DeviceMemory memory{.free_bytes = 42 * kGiB, .total_bytes = 80 * kGiB};
  ModelOptions options;
  EXPECT_EQ(*DeviceKvBudget(options, memory, Groups()), 38 * kGiB);
  options.kv_memory_fraction = 0.5;
  EXPECT_EQ(*DeviceKvBudget(options, memory, Groups()), 20 * kGiB);
  options.kv_budget_bytes = 40 * kGiB;
  EXPECT_EQ(*DeviceKvBudget(options, memory, Groups()), 40 * kGiB);
}

TEST(KvBudget, SaysNeedHaveAndWhatToLower) {
  const kernels::DeviceMemory memory{.free_bytes = 42 * kGiB, .total_bytes = 80 * kGiB};
  ModelOptions options;
  options.kv_budget_bytes = 40 * kGiB + 1;
  EXPECT_THAT(Refusal(options, memory),
              AllOf(HasSubstr(std::to_string(40 * kGiB + 1)), HasSubstr(std::to_string(42 * kGiB)),
                    HasSubstr(std::to_string(80 * kGiB)), HasSubstr("--kv-memory (or leave it out")));
  // Not even a page of each group, whatever was asked for.
  options.kv_budget_bytes = 0;
  EXPECT_THAT(Refusal(options, {.free_bytes = kGiB, .total_bytes = 80 * kGiB}),
              AllOf(HasSubstr("--scheduler-max-step-tokens"), HasSubstr("--max-context")));
  EXPECT_GE(*DeviceKvBudget(options, {.free_bytes = 2 * kGiB + (12 << 20), .total_bytes = 80 * kGiB},
                            Groups()),
            12 << 20);
}

}  // namespace
}  // namespace longstride::model
