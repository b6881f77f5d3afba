// The values behind metrics: atomics only, so that the step path never waits. prometheus-cpp's own
// histogram takes a lock for every observation (its registry and text format are used as they are).
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "prometheus/metric_family.h"
#include "server/metrics/metric_table.h"

namespace longstride::metrics {

// A counter or a gauge. Thread-safe.
class Cell {
 public:
  void Add(double value) { value_.fetch_add(value, std::memory_order_relaxed); }
  void Set(double value) { value_.store(value, std::memory_order_relaxed); }
  double Get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

// Thread-safe. A scrape that runs beside Observe may see the count without the sum, never less than
// an earlier scrape saw.
class HistogramCell {
 public:
  explicit HistogramCell(const std::vector<double>& bounds)
      : bounds_(bounds), counts_(bounds.size() + 1) {}
  void Observe(double value);
  prometheus::ClientMetric::Histogram Collect() const;

 private:
  const std::vector<double>& bounds_;  // of the table, upper bounds inclusive
  std::vector<std::atomic<uint64_t>> counts_;
  std::atomic<double> sum_{0};
};

// One declared metric and its series. Series are created on first use and never removed.
class Family {
 public:
  // A metric without labels has its one series from the start; one with labels has none yet.
  explicit Family(const Metric& metric);

  // Take once and keep: finding a series locks. Thread-safe. Beyond kMaxSeries, the label values
  // become "other".
  Cell* Series(const std::vector<std::string>& label_values = {});
  HistogramCell* Histogram(const std::vector<std::string>& label_values = {});

  // The series of a metric without labels; lock-free.
  Cell& Value() { return *only_cell_; }
  HistogramCell& Distribution() { return *only_histogram_; }

  const Metric& metric() const { return metric_; }
  prometheus::MetricFamily Collect() const;

 private:
  static constexpr size_t kMaxSeries = 256;
  std::vector<std::string> Bounded(const std::vector<std::string>& values, size_t size) const;
  prometheus::ClientMetric Labelled(const std::vector<std::string>& values) const;

  const Metric& metric_;
  Cell* only_cell_ = nullptr;
  HistogramCell* only_histogram_ = nullptr;
  mutable std::mutex mutex_;
  std::map<std::vector<std::string>, std::unique_ptr<Cell>> cells_;
  std::map<std::vector<std::string>, std::unique_ptr<HistogramCell>> histograms_;
};

}  // namespace longstride::metrics
