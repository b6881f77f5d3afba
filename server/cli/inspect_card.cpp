// The model-and-plan card: what is served and what of it approximates, for people who judge it.
#include "server/cli/inspect_card.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "config/base/version.h"
#include "config/option_value.h"
#include "model/sparsity/hash.h"
#include "server/cli/command.h"

namespace longstride::cli {
namespace {

using nlohmann::json;

constexpr int64_t kMaxReportBytes = int64_t{64} << 20;

// Text in a table's cell.
std::string Cell(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

void Row(const std::vector<std::string>& cells, std::string* out) {
  *out += "|";
  for (const std::string& cell : cells) StrAppend(out, " ", Cell(cell), " |");
  *out += "\n";
}

void Header(const std::vector<std::string>& cells, std::string* out) {
  Row(cells, out);
  *out += "|";
  for (size_t i = 0; i < cells.size(); ++i) *out += " --- |";
  *out += "\n";
}

std::string Percent(double share) { return absl::StrFormat("%.1f%%", 100 * share); }

void AppendModel(const InspectReport& report, std::string* out) {
  *out += "\n## Model\n\n";
  Header({"", ""}, out);
  Row({"name", report.name}, out);
  Row({"family", report.family}, out);
  Row({"weights", report.weights_type}, out);
  Row({"parameters", StrCat(report.num_parameters)}, out);
  Row({"layers", StrCat(report.layers.size())}, out);
  Row({"context served, tokens", StrCat(report.max_context)}, out);
  Row({"keys and values stored as", report.kv_dtype}, out);
  Row({"weights' digest", StrCat("`", report.model_digest, "`")}, out);
}

bool Differs(const InspectReport::Segment& segment) { return segment.pattern != segment.native; }

void AppendPlan(const InspectReport& report, std::string* out) {
  *out += "\n## Sparsity plan\n\n";
  Header({"", ""}, out);
  Row({"name", report.plan}, out);
  Row({"digest", StrCat("`", report.plan_digest, "`")}, out);
  Row({"fidelity report",
       report.fidelity_report.empty() ? "the plan names none" : report.fidelity_report},
      out);
  *out += "\nWhich keys a query may read, by layer and query heads:\n\n";
  Header({"layers", "heads", "pattern served", "the checkpoint's own", "same"}, out);
  // Layers that are alike share a row.
  std::vector<std::pair<std::vector<std::string>, std::vector<size_t>>> rows;
  for (size_t l = 0; l < report.layers.size(); ++l) {
    for (const InspectReport::Segment& segment : report.layers[l].segments) {
      const std::vector<std::string> row = {
          StrCat(segment.first_head, "-", segment.first_head + segment.num_heads - 1),
          segment.pattern, segment.native, Differs(segment) ? "**no**" : "yes"};
      auto at = std::find_if(rows.begin(), rows.end(),
                             [&](const auto& known) { return known.first == row; });
      if (at == rows.end()) at = rows.insert(rows.end(), {row, {}});
      at->second.push_back(l);
    }
  }
  for (auto& [row, layers] : rows) {
    row.insert(row.begin(), IndexRangesText(layers));
    Row(row, out);
  }
  *out += "\nKeys read, of all before the query, mean over layers and heads:\n\n";
  Header({"position", "a prompt's token", "a generated token"}, out);
  for (const InspectReport::Density& density : report.densities) {
    Row({StrCat(density.length), Percent(density.plan), Percent(density.generated_plan)}, out);
  }
}

void AppendApproximations(const InspectReport& report, std::string* out) {
  *out += "\n## What is approximated\n\n";
  for (const std::string& note : report.notes) StrAppend(out, "- ", note, "\n");
  size_t layers = 0;
  for (const InspectReport::Layer& layer : report.layers) {
    layers += std::any_of(layer.segments.begin(), layer.segments.end(), Differs) ? 1 : 0;
  }
  if (layers == 0) {
    *out +=
        "- Attention: nothing. Every layer reads the keys that the checkpoint was made to read.\n";
  } else {
    StrAppend(out, "- Attention: in ", layers, " of ", report.layers.size(),
              " layers, heads read other keys than the checkpoint was made to read (**no** above). "
              "That is another function than the checkpoint's, chosen by the operator.\n");
  }
  StrAppend(out, "- Keys and values are stored as ", report.kv_dtype,
            report.kv_dtype == "q8" ? ", 8-bit integers with a scale a token and head.\n" : ".\n");
  StrAppend(
      out, "- Weights are ", report.weights_type,
      " as the checkpoint's file has them. Where that is less than the model was trained in, the "
      "loss happened before this server and is not measured here.\n");
  std::vector<std::string> freeing;
  for (const InspectReport::Group& group : report.groups) {
    if (group.retention != "all") {
      freeing.push_back(StrCat(group.name, " (keeps ", group.retention, ")"));
    }
  }
  for (const std::string& group : freeing) {
    StrAppend(out, "- Cache group ", group,
              " frees keys that none of its later queries may read.\n");
  }
}

std::string Estimate(const json& value, int digits, double scale = 1) {
  const auto number = [&](const json& n) {
    return absl::StrFormat("%.*f", digits, scale * n.get<double>());
  };
  return StrCat(number(value.at("value")), " (", number(value.at("interval").at(0)), " to ",
                number(value.at("interval").at(1)), ")");
}

void AppendFigures(const json& report, std::string* out) {
  const json& divergence = report.at("divergence");
  StrAppend(out, report.at("verdict").get<std::string>(), "\n\n");
  Header({"figure", "estimate (95% interval)"}, out);
  Row({"KL to the baseline, nats", Estimate(divergence.at("kl"), 4)}, out);
  Row({"same likeliest token, %", Estimate(divergence.at("same_top"), 1, 100)}, out);
  Row({"perplexity ratio", Estimate(divergence.at("perplexity_ratio"), 3)}, out);
  if (report.at("captured_mass").at("mean").is_object()) {
    Row({"captured attention mass, %", Estimate(report.at("captured_mass").at("mean"), 1, 100)},
        out);
  }
  for (const json& yardstick : report.at("yardsticks")) {
    if (!yardstick.at("divergence").is_object()) continue;
    Row({StrCat("for comparison, KL of: ", yardstick.at("name").get<std::string>()),
         Estimate(yardstick.at("divergence").at("kl"), 4)},
        out);
  }
  if (const json& worst = report.at("tasks").at("worst"); worst.is_object()) {
    for (const json& task : report.at("tasks").at("results")) {
      if (task.at("task") != worst.at("task") || task.at("tokens") != worst.at("tokens")) continue;
      const auto accuracy = [&](const char* name) {
        const json& value = task.at(name);
        return Percent((value.is_object() ? value.at("value") : value).get<double>());
      };
      Row({StrCat("worst task: ", task.at("description").get<std::string>(), ", ",
                  task.at("tokens").get<int64_t>(), " tokens"),
           StrCat(accuracy("plan_accuracy"), " right; the baseline ",
                  accuracy("baseline_accuracy"))},
          out);
    }
  }
  const json& identity = report.at("identity");
  StrAppend(out, "\nMeasured on ", identity.at("date").get<std::string>(), " with version ",
            identity.at("version").get<std::string>(), " (",
            identity.at("commit").get<std::string>(), ") on ",
            identity.at("device").get<std::string>(), ", KV ",
            identity.at("kv_dtype").get<std::string>(), ", in windows of ",
            identity.at("window_tokens").get<int64_t>(), " tokens, over\n\n");
  Header({"text", "tokens", "sha256"}, out);
  for (const json& file : identity.at("data")) {
    Row({file.at("name").get<std::string>(), StrCat(file.at("tokens").get<int64_t>()),
         StrCat("`", file.at("sha256").get<std::string>(), "`")},
        out);
  }
  for (const json& note : report.at("notes")) {
    StrAppend(out, "\n", note.get<std::string>(), "\n");
  }
}

absl::Status AppendFidelity(const InspectReport& report, const std::string& path,
                            std::string* out) {
  *out += "\n## Fidelity\n\n";
  if (path.empty()) {
    *out +=
        report.fidelity_report.empty()
            ? "No report was given, and the plan names none: **what the plan does to answers is "
              "not measured here.** `longstride fidelity` measures it.\n"
            : "The plan names a report that was not given (`--fidelity-report FILE`); its figures "
              "are there.\n";
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::string text,
                   ReadTextFile(path, "--fidelity-report: the file", kMaxReportBytes));
  const std::string digest = StrCat("sha256:", model::Sha256Hex(text));
  if (!report.fidelity_report.empty() && digest != report.fidelity_report) {
    return absl::InvalidArgumentError(StrCat("--fidelity-report: the file is ", digest,
                                             ", but the plan was chosen by ",
                                             report.fidelity_report, "; give that one."));
  }
  const json parsed = json::parse(text, nullptr, false);
  try {
    const std::string plan = parsed.at("plan").at("digest");
    const std::string model = parsed.at("identity").at("model_digest");
    if (plan != report.plan_digest || model != report.model_digest) {
      return absl::InvalidArgumentError(
          StrCat("--fidelity-report: it is about model ", model, " and plan ", plan,
                 ", but this card is about model ", report.model_digest, " and plan ",
                 report.plan_digest, "; make one with longstride fidelity."));
    }
    StrAppend(out, "Report `", digest, "`. ");
    AppendFigures(parsed, out);
  } catch (const json::exception&) {
    return absl::InvalidArgumentError(
        "--fidelity-report: the file is no report of longstride fidelity (its JSON).");
  }
  return absl::OkStatus();
}

void AppendLimits(const InspectReport& report, std::string* out) {
  *out += R"(
## Limits

- This card is generated from the checkpoint, the plan and the report. It says what is computed, not whether the model
  suits a purpose; training data, bias and safety of the model are its maker's to document.
- Fidelity is nearness to the checkpoint's own plan, on the texts and lengths of the report. Other texts and
  longer contexts may differ: measure on yours.
)";
  StrAppend(out, "- Prompts and answers together are at most ", report.max_context, " tokens.\n");
}

void AppendVerification(const InspectReport& report, std::string* out) {
  *out += "\n## How to verify\n\n";
  StrAppend(
      out,
      "- The same files give the same digests: `longstride inspect MODEL --plan PLAN` prints `",
      report.model_digest, "` and `", report.plan_digest, "`.\n");
  *out +=
      R"(- A server says what it serves: `GET /v1/models`, the metric `longstride:model_info`, and the header
  `x-longstride-plan` of every answer.
- `longstride fidelity MODEL --plan PLAN --data FILES` measures again; its JSON names texts, seed and version.
- While serving, `fidelity.sample_rate` compares samples with the checkpoint's own attention (a lower bound).
- With `audit.file`, every answer's model and plan are recorded; `longstride audit verify FILE` checks the record.
)";
}

}  // namespace

absl::StatusOr<std::string> InspectCard(const InspectReport& report,
                                        const std::string& fidelity_report) {
  std::string out = StrCat("# Model and plan card: ", report.name, "\n\nGenerated by longstride ",
                           Version(), " (", BuildCommit(), ").\n");
  AppendModel(report, &out);
  AppendPlan(report, &out);
  AppendApproximations(report, &out);
  RETURN_IF_ERROR(AppendFidelity(report, fidelity_report, &out));
  AppendLimits(report, &out);
  AppendVerification(report, &out);
  return out;
}

}  // namespace longstride::cli
