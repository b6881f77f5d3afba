#include "server/frontend/attention_map.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <vector>

#include "model/sparsity/sparse_pattern.h"
#include "model/sparsity/sparsity_plan.h"
#include "server/frontend/error_mapping.h"
#include "server/frontend/json_writer.h"

namespace longstride::frontend {
namespace {

constexpr int64_t kCells = 64;
constexpr int64_t kSamples = 4;  // per side of a cell

// "length" of a query string, or 0.
absl::StatusOr<int64_t> LengthOf(std::string_view query, int64_t max) {
  constexpr std::string_view kName = "length=";
  while (!query.empty()) {
    const std::string_view part = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), part.size() + 1));
    if (!part.starts_with(kName)) continue;
    const std::string_view value = part.substr(kName.size());
    int64_t length = 0;
    const auto parsed = std::from_chars(value.data(), value.data() + value.size(), length);
    if (parsed.ec != std::errc() || parsed.ptr != value.data() + value.size() || length < 1 ||
        length > max) {
      return InvalidParam("length", StrCat("'length' must be an integer from 1 to ", max));
    }
    return length;
  }
  return 0;
}

// Points of [begin, end), spread evenly; at least one.
std::vector<int64_t> SamplePoints(int64_t begin, int64_t end) {
  std::vector<int64_t> points;
  const int64_t count = std::min(kSamples, end - begin);
  for (int64_t i = 0; i < count; ++i) {
    points.push_back(begin + (2 * i + 1) * (end - begin) / (2 * count));
  }
  return points;
}

std::string Row(const model::SparsePattern& pattern, int32_t head, int64_t length, int64_t cells,
                int64_t row, bool causal) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  const auto queries = SamplePoints(row * length / cells, (row + 1) * length / cells);
  for (int64_t column = 0; column < (causal ? row + 1 : cells); ++column) {
    const auto keys = SamplePoints(column * length / cells, (column + 1) * length / cells);
    int64_t seen = 0;
    for (const int64_t i : queries) {
      for (const int64_t j : keys) seen += pattern.Visible(head, i, j) ? 1 : 0;
    }
    const auto all = static_cast<int64_t>(queries.size() * keys.size());
    out.push_back(kHex[(seen * 15 + all - 1) / all]);  // anything seen shows
  }
  return out;
}

void WritePattern(const model::SparsityPlan& plan, int32_t index, int32_t head,
                  const std::vector<int64_t>& layers, int64_t length, JsonWriter* json) {
  const model::SparsePattern& pattern = *plan.patterns[static_cast<std::size_t>(index)];
  json->BeginObject();
  json->Field("pattern", pattern.Describe());
  json->Key("layers");
  json->BeginArray();
  for (const int64_t layer : layers) json->Int(layer);
  json->EndArray();
  const double visible = plan.KeysSeen(index, length - 1, model::NumericsClass::kGenerated);
  json->Field("visible_keys", visible);
  json->Field("density", visible / static_cast<double>(length));
  // The picture then shows what some query may read.
  json->Field("query_dependent", pattern.ranking() != nullptr);
  json->Key("rows");
  json->BeginArray();
  const int64_t cells = std::min(kCells, length);
  for (int64_t row = 0; row < cells; ++row) {
    json->String(Row(pattern, head, length, cells, row, plan.causal));
  }
  json->EndArray();
  json->EndObject();
}

}  // namespace

absl::StatusOr<std::string> AttentionMapJson(const ServedModel& model, std::string_view query) {
  if (model.plan == nullptr) return absl::UnimplementedError("this model has no sparsity plan");
  ASSIGN_OR_RETURN(int64_t length, LengthOf(query, model.max_context));
  if (length == 0) length = std::min<int64_t>(4096, model.max_context);

  struct Use {
    int32_t head = 0;
    std::vector<int64_t> layers;
  };
  std::map<int32_t, Use> uses;  // by pattern
  for (std::size_t layer = 0; layer < model.plan->layers.size(); ++layer) {
    for (const model::HeadSegment& segment : model.plan->layers[layer].segments) {
      Use& use = uses[segment.pattern];
      if (use.layers.empty()) use.head = segment.query.first;
      if (use.layers.empty() || use.layers.back() != static_cast<int64_t>(layer)) {
        use.layers.push_back(static_cast<int64_t>(layer));
      }
    }
  }
  std::string body;
  JsonWriter json(&body);
  json.BeginObject();
  json.Field("length", length);
  json.Field("cells", std::min(kCells, length));
  json.Field("layers", static_cast<int64_t>(model.plan->layers.size()));
  json.Field("plan", model.plan->name);
  json.Key("patterns");
  json.BeginArray();
  for (const auto& [pattern, use] : uses) {
    WritePattern(*model.plan, pattern, use.head, use.layers, length, &json);
  }
  json.EndArray();
  json.EndObject();
  return body;
}

}  // namespace longstride::frontend
