// Global tokens whose queries, and the keys and values that these read, are projected apart
// (Longformer): their rows are attended in a call of their own. Internal to model/.
#pragma once

#include <cstdint>
#include <vector>

#include "model/sparsity/sparsity_plan.h"
#include "model/step_layout.h"

namespace longstride::model {

// The first tokens of every text that the model projects apart; 0: none.
int32_t GlobalTokens(const ModelSpec& spec);

class GlobalRows {
 public:
  // Rows [from, +count) of the global tokens stand at `to` in the step, or among its wanted rows.
  struct Place {
    int32_t from = 0;
    int32_t to = 0;
    int32_t count = 0;
  };

  // `tokens`: GlobalTokens.
  explicit GlobalRows(int32_t tokens) : tokens_(tokens) {}

  // Parts the step's runs at the end of their global tokens.
  void SetRuns(const StepLayout& layout);
  // What these read by each pattern of the plan.
  void Select(const SparsityPlan& plan);

  const std::vector<int32_t>& rows() const { return rows_; }            // of the step, ascending
  const std::vector<int32_t>& ascending() const { return ascending_; }  // 0, 1, ... as many
  const std::vector<QueryRun>& local_runs() const { return local_runs_; }
  const std::vector<QueryRun>& local_wanted_runs() const { return local_wanted_runs_; }
  // Its rows are numbered as rows() are.
  const SelectionBuilder& selection(size_t pattern) const { return selections_[pattern]; }
  const std::vector<Place>& places(bool wanted) const { return wanted ? wanted_places_ : places_; }

 private:
  void Part(const std::vector<QueryRun>& runs, std::vector<QueryRun>* local,
            std::vector<Place>* places) const;

  int32_t tokens_;
  std::vector<int32_t> rows_, ascending_;
  std::vector<int32_t> first_of_;  // [sequence] index into rows_
  std::vector<QueryRun> runs_, local_runs_, local_wanted_runs_;
  std::vector<Place> places_, wanted_places_;
  std::vector<SelectionBuilder> selections_;  // [pattern]
};

}  // namespace longstride::model
