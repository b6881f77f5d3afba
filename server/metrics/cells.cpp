#include "server/metrics/cells.h"

#include <algorithm>
#include <limits>

#include "config/base/check.h"

namespace longstride::metrics {

void HistogramCell::Observe(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[bucket].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

prometheus::ClientMetric::Histogram HistogramCell::Collect() const {
  prometheus::ClientMetric::Histogram histogram;
  uint64_t cumulative = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    cumulative += counts_[i].load(std::memory_order_relaxed);
    prometheus::ClientMetric::Bucket bucket;
    bucket.cumulative_count = cumulative;
    bucket.upper_bound = i < bounds_.size() ? bounds_[i] : std::numeric_limits<double>::infinity();
    histogram.bucket.push_back(bucket);
  }
  histogram.sample_count = cumulative;
  histogram.sample_sum = sum_.load(std::memory_order_relaxed);
  return histogram;
}

Family::Family(const Metric& metric) : metric_(metric) {
  if (!metric.labels.empty() || metric.on_gpu_only) return;
  if (metric.type == MetricType::kHistogram) {
    only_histogram_ = Histogram();
  } else {
    only_cell_ = Series();
  }
}

std::vector<std::string> Family::Bounded(const std::vector<std::string>& values,
                                         size_t size) const {
  LS_CHECK_EQ(values.size(), metric_.labels.size());
  if (size < kMaxSeries) return values;
  return std::vector<std::string>(values.size(), "other");
}

Cell* Family::Series(const std::vector<std::string>& label_values) {
  LS_CHECK(metric_.type != MetricType::kHistogram);
  const std::lock_guard lock(mutex_);
  if (const auto found = cells_.find(label_values); found != cells_.end()) {
    return found->second.get();
  }
  auto& cell = cells_[Bounded(label_values, cells_.size())];
  if (cell == nullptr) cell = std::make_unique<Cell>();
  return cell.get();
}

HistogramCell* Family::Histogram(const std::vector<std::string>& label_values) {
  LS_CHECK(metric_.type == MetricType::kHistogram);
  const std::lock_guard lock(mutex_);
  if (const auto found = histograms_.find(label_values); found != histograms_.end()) {
    return found->second.get();
  }
  auto& cell = histograms_[Bounded(label_values, histograms_.size())];
  if (cell == nullptr) cell = std::make_unique<HistogramCell>(metric_.buckets);
  return cell.get();
}

prometheus::ClientMetric Family::Labelled(const std::vector<std::string>& values) const {
  prometheus::ClientMetric out;
  for (size_t i = 0; i < values.size(); ++i) {
    prometheus::ClientMetric::Label label;
    label.name = metric_.labels[i];
    label.value = values[i];
    out.label.push_back(std::move(label));
  }
  return out;
}

prometheus::MetricFamily Family::Collect() const {
  prometheus::MetricFamily family;
  family.name = std::string(metric_.name);
  family.help = std::string(metric_.help);
  const std::lock_guard lock(mutex_);
  switch (metric_.type) {
    case MetricType::kCounter:
      family.type = prometheus::MetricType::Counter;
      break;
    case MetricType::kGauge:
      family.type = prometheus::MetricType::Gauge;
      break;
    case MetricType::kHistogram:
      family.type = prometheus::MetricType::Histogram;
      break;
  }
  for (const auto& [values, cell] : cells_) {
    prometheus::ClientMetric out = Labelled(values);
    (metric_.type == MetricType::kCounter ? out.counter.value : out.gauge.value) = cell->Get();
    family.metric.push_back(std::move(out));
  }
  for (const auto& [values, cell] : histograms_) {
    prometheus::ClientMetric out = Labelled(values);
    out.histogram = cell->Collect();
    family.metric.push_back(std::move(out));
  }
  return family;
}

}  // namespace longstride::metrics
