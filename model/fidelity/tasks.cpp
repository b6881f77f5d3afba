#include "model/fidelity/tasks.h"

#include <algorithm>
#include <array>
#include <random>
#include <string>
#include <utility>

namespace longstride::model::fidelity {
namespace {

constexpr size_t kCandidates = 4;

constexpr std::array<std::string_view, 24> kPlaces = {
    "harbour", "library", "museum",  "station", "factory",  "bakery", "airport",   "theatre",
    "garden",  "market",  "castle",  "bridge",  "hospital", "school", "warehouse", "hotel",
    "mine",    "tower",   "stadium", "palace",  "brewery",  "farm",   "temple",    "observatory"};
constexpr std::array<std::string_view, 16> kAdjectives = {
    "old",   "quiet",  "small", "bright", "heavy", "narrow",  "green",  "warm",
    "early", "simple", "round", "dusty",  "calm",  "distant", "wooden", "empty"};
constexpr std::array<std::string_view, 16> kNouns = {
    "road",  "river", "cart",  "window", "letter", "field", "boat",   "lamp",
    "table", "cloud", "fence", "path",   "stone",  "roof",  "basket", "train"};
constexpr std::array<std::string_view, 12> kVerbs = {"passes", "faces",   "follows", "touches",
                                                     "leaves", "meets",   "covers",  "crosses",
                                                     "marks",  "reaches", "holds",   "joins"};
constexpr std::array<std::string_view, 40> kWords = {
    "apple",  "river",  "stone",  "cloud",  "table",  "horse",  "paper",  "glass",
    "bread",  "chair",  "metal",  "ocean",  "plant",  "music",  "clock",  "knife",
    "sugar",  "tiger",  "mouse",  "snake",  "wheel",  "train",  "brush",  "candle",
    "mirror", "bottle", "garden", "window", "button", "pencil", "rabbit", "butter",
    "ladder", "hammer", "pillow", "basket", "finger", "orange", "silver", "winter"};

// std::shuffle and the distributions differ between standard libraries; this does not.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  size_t Below(size_t n) { return static_cast<size_t>(engine_() % n); }
  template <typename T>
  const auto& Pick(const T& values) {
    return values[Below(values.size())];
  }
  template <typename T>
  void Shuffle(std::vector<T>* values) {
    for (size_t i = values->size(); i > 1; --i) std::swap((*values)[i - 1], (*values)[Below(i)]);
  }

 private:
  std::mt19937_64 engine_;
};

// `count` different numbers of five digits.
std::vector<std::string> Numbers(size_t count, Random* random) {
  std::vector<std::string> out;
  while (out.size() < count) {
    std::string number = std::to_string(10000 + random->Below(90000));
    if (std::find(out.begin(), out.end(), number) == out.end()) out.push_back(std::move(number));
  }
  return out;
}

std::vector<std::string> Places(size_t count, Random* random) {
  std::vector<std::string> places(kPlaces.begin(), kPlaces.end());
  random->Shuffle(&places);
  places.resize(count);
  return places;
}

std::string Filler(Random* random) {
  std::string sentence = StrCat("The ", random->Pick(kAdjectives), " ", random->Pick(kNouns), " ",
                                random->Pick(kVerbs), " the ", random->Pick(kAdjectives), " ",
                                random->Pick(kNouns), ".");
  return sentence;
}

struct Question {
  std::string text;
  std::vector<std::string> answers;  // the right one first
};

// The right answer and the distractors that `others` holds first.
std::vector<std::string> Answers(const std::string& right, const std::vector<std::string>& others) {
  std::vector<std::string> answers = {StrCat(" ", right)};
  for (const std::string& other : others) {
    if (other != right && answers.size() < kCandidates) answers.push_back(StrCat(" ", other));
  }
  return answers;
}

// What a task puts into the filler, in order, and what it asks.
struct Plot {
  std::vector<std::string> facts;
  std::vector<Question> questions;
  // The list of common words takes the whole text: facts are repeated in these proportions.
  bool words = false;
};

Plot SingleKey(Random* random) {
  const std::string place = Places(1, random)[0];
  const std::vector<std::string> numbers = Numbers(kCandidates, random);
  return {.facts = {StrCat("The access code of the ", place, " is ", numbers[0], ".")},
          .questions = {{StrCat("Question: What is the access code of the ", place,
                                "?\nAnswer: The access code of the ", place, " is"),
                         Answers(numbers[0], numbers)}}};
}

Plot MultiKey(Random* random) {
  constexpr size_t kKeys = 8;
  constexpr size_t kAsked = 4;
  const std::vector<std::string> places = Places(kKeys, random);
  const std::vector<std::string> numbers = Numbers(kKeys, random);
  Plot plot;
  for (size_t i = 0; i < kKeys; ++i) {
    plot.facts.push_back(StrCat("The access code of the ", places[i], " is ", numbers[i], "."));
  }
  for (size_t i = 0; i < kAsked; ++i) {
    std::vector<std::string> others = numbers;
    random->Shuffle(&others);
    plot.questions.push_back({StrCat("Question: What is the access code of the ", places[i],
                                     "?\nAnswer: The access code of the ", places[i], " is"),
                              Answers(numbers[i], others)});
  }
  random->Shuffle(&plot.facts);
  return plot;
}

Plot MultiValue(Random* random) {
  constexpr size_t kValues = 4;
  const std::vector<std::string> places = Places(2, random);
  // The second half belongs to another key and makes the wrong lists.
  const std::vector<std::string> numbers = Numbers(2 * kValues, random);
  Plot plot;
  for (size_t i = 0; i < 2 * kValues; ++i) {
    plot.facts.push_back(
        StrCat("One access code of the ", places[i / kValues], " is ", numbers[i], "."));
  }
  const auto list = [](const std::vector<std::string>& values) {
    std::string out;
    for (const std::string& value : values) StrAppend(&out, out.empty() ? "" : ", ", value);
    return out;
  };
  std::vector<std::string> right(numbers.begin(), numbers.begin() + kValues);
  std::vector<std::string> lists;
  for (size_t i = 0; i < kCandidates - 1; ++i) {
    std::vector<std::string> wrong = right;
    wrong[(i + 1) % kValues] = numbers[kValues + i];
    lists.push_back(list(wrong));
  }
  plot.questions.push_back({StrCat("Question: Which four access codes has the ", places[0],
                                   "?\nAnswer: The access codes of the ", places[0], " are"),
                            Answers(list(right), lists)});
  // Facts of the two keys alternate, each key's in the order of the list.
  std::vector<std::string> facts;
  for (size_t i = 0; i < kValues; ++i) {
    facts.push_back(plot.facts[i]);
    facts.push_back(plot.facts[kValues + i]);
  }
  plot.facts = std::move(facts);
  return plot;
}

Plot VariableTracking(Random* random) {
  constexpr size_t kChains = 4;
  constexpr size_t kHops = 3;
  constexpr size_t kAsked = 2;
  std::vector<std::string> names;
  while (names.size() < kChains * kHops) {
    std::string name;
    for (int i = 0; i < 4; ++i) name += static_cast<char>('A' + random->Below(26));
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  const std::vector<std::string> numbers = Numbers(kChains, random);
  Plot plot;
  for (size_t hop = 0; hop < kHops; ++hop) {
    for (size_t chain = 0; chain < kChains; ++chain) {
      const std::string& name = names[chain * kHops + hop];
      plot.facts.push_back(
          hop == 0 ? StrCat("VAR ", name, " = ", numbers[chain], ".")
                   : StrCat("VAR ", name, " = VAR ", names[chain * kHops + hop - 1], "."));
    }
  }
  for (size_t chain = 0; chain < kAsked; ++chain) {
    const std::string& last = names[chain * kHops + kHops - 1];
    plot.questions.push_back({StrCat("Question: Which number does VAR ", last,
                                     " have?\nAnswer: Following the assignments, VAR ", last, " ="),
                              Answers(numbers[chain], numbers)});
  }
  return plot;
}

Plot Counting(Random* random) {
  const std::vector<std::string> places = Places(2, random);
  const std::vector<std::string> counts = {"2", "3", "4", "5"};
  const size_t count = 2 + random->Below(counts.size());
  Plot plot;
  for (size_t i = 0; i < count; ++i) {
    plot.facts.push_back(StrCat("The bell of the ", places[0], " rings."));
  }
  for (size_t i = 0; i < 7 - count; ++i) {
    plot.facts.push_back(StrCat("The bell of the ", places[1], " rings."));
  }
  random->Shuffle(&plot.facts);
  plot.questions.push_back({StrCat("Question: How many times does the bell of the ", places[0],
                                   " ring in the text?\nAnswer: The number of times it rings is"),
                            Answers(counts[count - 2], counts)});
  return plot;
}

Plot CommonWords(Random* random) {
  std::vector<std::string> words(kWords.begin(), kWords.end());
  random->Shuffle(&words);
  Plot plot{.facts = words, .words = true};
  const std::vector<std::string> rare(words.begin() + 1, words.begin() + kCandidates);
  plot.questions.push_back(
      {"Question: Which word is the most common in the list?\nAnswer: The "
       "most common word in the list is",
       Answers(words[0], rare)});
  return plot;
}

Plot MakePlot(TaskKind kind, Random* random) {
  switch (kind) {
    case TaskKind::kSingleKey:
      return SingleKey(random);
    case TaskKind::kMultiKey:
      return MultiKey(random);
    case TaskKind::kMultiValue:
      return MultiValue(random);
    case TaskKind::kVariableTracking:
      return VariableTracking(random);
    case TaskKind::kCounting:
      return Counting(random);
    case TaskKind::kCommonWords:
      return CommonWords(random);
  }
  return {};
}

// The facts at random places among `filler` sentences, in their order.
std::string Compose(const Plot& plot, size_t filler, uint64_t seed) {
  Random random(seed);
  std::string text;
  if (plot.words) {
    // The common word is every fifth; the others share the rest.
    text = "A list of words:";
    std::vector<std::string> list;
    for (size_t i = 0; i < filler; ++i) {
      const bool common = i % 5 == 0;
      list.push_back(common ? plot.facts[0] : plot.facts[1 + random.Below(plot.facts.size() - 1)]);
    }
    random.Shuffle(&list);
    for (const std::string& word : list) StrAppend(&text, " ", word);
    return text;
  }
  std::vector<size_t> places;
  for (size_t i = 0; i < plot.facts.size(); ++i) places.push_back(random.Below(filler + 1));
  std::sort(places.begin(), places.end());
  size_t fact = 0;
  for (size_t i = 0; i <= filler; ++i) {
    for (; fact < places.size() && places[fact] == i; ++fact) {
      StrAppend(&text, text.empty() ? "" : " ", plot.facts[fact]);
    }
    if (i < filler) StrAppend(&text, text.empty() ? "" : " ", Filler(&random));
  }
  return text;
}

absl::StatusOr<TaskQuestion> Encode(const Tokenizer& tokenizer, const Question& question,
                                    Random* random) {
  std::vector<std::vector<int32_t>> ids;
  for (const std::string& answer : question.answers) {
    ASSIGN_OR_RETURN(auto encoded, tokenizer.Encode(StrCat("\n", question.text, answer, "."),
                                                    {.add_special = false}));
    ids.push_back(std::move(encoded));
  }
  size_t common = 0;
  const auto shared = [&](size_t at) {
    return std::all_of(ids.begin(), ids.end(), [&](const std::vector<int32_t>& row) {
      return at + 1 < row.size() && row[at] == ids[0][at];
    });
  };
  while (shared(common)) ++common;
  TaskQuestion out;
  const auto cut = static_cast<std::ptrdiff_t>(common);
  out.tail.assign(ids[0].begin(), ids[0].begin() + cut);
  // The right one's place among the candidates is random, so that nothing can prefer the first.
  std::vector<size_t> order(ids.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  random->Shuffle(&order);
  for (size_t i = 0; i < order.size(); ++i) {
    if (order[i] == 0) out.right = static_cast<int32_t>(i);
    out.candidates.emplace_back(ids[order[i]].begin() + cut, ids[order[i]].end());
  }
  return out;
}

}  // namespace

std::string_view TaskName(TaskKind kind) {
  switch (kind) {
    case TaskKind::kSingleKey:
      return "single_key";
    case TaskKind::kMultiKey:
      return "multi_key";
    case TaskKind::kMultiValue:
      return "multi_value";
    case TaskKind::kVariableTracking:
      return "variable_tracking";
    case TaskKind::kCounting:
      return "counting";
    case TaskKind::kCommonWords:
      return "common_words";
  }
  return "";
}

std::string_view TaskDescription(TaskKind kind) {
  switch (kind) {
    case TaskKind::kSingleKey:
      return "one fact in filler text";
    case TaskKind::kMultiKey:
      return "one of eight facts of the same form";
    case TaskKind::kMultiValue:
      return "all four values of a key beside another key's";
    case TaskKind::kVariableTracking:
      return "a value through two assignments, one of four chains";
    case TaskKind::kCounting:
      return "how often a sentence occurs";
    case TaskKind::kCommonWords:
      return "the most frequent word of a long list";
  }
  return "";
}

absl::StatusOr<TaskContext> MakeTask(const Tokenizer& tokenizer, TaskKind kind, int32_t tokens,
                                     uint64_t seed) {
  Random random(seed * 64 + static_cast<uint64_t>(kind));
  const Plot plot = MakePlot(kind, &random);
  const uint64_t compose_seed = seed * 64 + 32 + static_cast<uint64_t>(kind);
  TaskContext task{.kind = kind, .target_tokens = tokens};
  int32_t room = tokens;
  for (const Question& question : plot.questions) {
    ASSIGN_OR_RETURN(TaskQuestion encoded, Encode(tokenizer, question, &random));
    for (const auto& candidate : encoded.candidates) {
      const size_t needed = encoded.tail.size() + candidate.size();
      room = std::min(room, tokens - static_cast<int32_t>(needed));
    }
    task.questions.push_back(std::move(encoded));
  }
  // The most filler that fits, by bisection: token counts of a whole are not those of its parts.
  size_t low = 0;
  size_t high = static_cast<size_t>(std::max(tokens, 1));
  while (low < high) {
    const size_t middle = (low + high + 1) / 2;
    ASSIGN_OR_RETURN(auto ids, tokenizer.Encode(Compose(plot, middle, compose_seed)));
    if (static_cast<int32_t>(ids.size()) <= room) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  constexpr size_t kLeastFiller = 4;
  if (low < kLeastFiller) {
    return absl::InvalidArgumentError(StrCat("--task-lengths: ", tokens,
                                             " tokens have no room for ", TaskName(kind),
                                             "; give a longer length."));
  }
  ASSIGN_OR_RETURN(task.tokens, tokenizer.Encode(Compose(plot, low, compose_seed)));
  return task;
}

}  // namespace longstride::model::fidelity
