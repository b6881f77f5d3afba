// Checkpoints of e4m3 weights: every layout of scales means code * scale.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>

#include "kernels/quant.h"
#include "model/families/weight_binder.h"
#include "tests/model/families/edited_checkpoint.h"
#include "tests/testing/random_seed.h"
#include "tests/testing/safetensors_writer.h"

namespace longstride::model {
namespace {

using kernels::DType;
using kernels::TensorView;
using nlohmann::json;
using ::testing::HasSubstr;

constexpr int64_t kRows = 200;  // blocks of 128 end inside

struct Scales {
  std::string suffix;  // behind "m.weight"
  std::string dtype;   // "F32" or "BF16"
  std::vector<int64_t> shape;
  std::function<size_t(int64_t row, int64_t col)> index;
};

const Scales kPerTensor = {"_scale", "F32", {1}, [](int64_t, int64_t) { return size_t{0}; }};
const Scales kScalar = {"_scale", "F32", {}, [](int64_t, int64_t) { return size_t{0}; }};
const Scales kPerRow = {
    "_scale", "BF16", {kRows, 1}, [](int64_t r, int64_t) { return static_cast<size_t>(r); }};
const Scales kPerRowFlat = {
    "_scale", "F32", {kRows}, [](int64_t r, int64_t) { return static_cast<size_t>(r); }};
const Scales kPerBlock = {"_scale_inv", "F32", {2, 3}, [](int64_t r, int64_t c) {
                            return static_cast<size_t>(r / 128 * 3 + c / 128);
                          }};

class Fp8WeightsTest : public ::testing::Test {
 protected:
  // A file of one weight with random codes, and what else `add` puts there.
  void Open(const std::function<void(testing::SafetensorsWriter*)>& add) {
    codes_.resize(static_cast<size_t>(kRows * cols_));
    for (uint8_t& code : codes_) {
      do code = static_cast<uint8_t>(rng_());
      while ((code & 0x7f) == 0x7f);
    }
    if (broken_) codes_.back() = 0xff;
    testing::SafetensorsWriter writer;
    writer.Add("m.weight", "F8_E4M3", {kRows, cols_}, codes_);
    add(&writer);
    folder_.Write("config.json", "{}");
    file_.reset();  // before what it maps is written again
    folder_.Write("model.safetensors", writer.Finish());
    auto file = WeightsFile::Open(folder_.path());
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
  }
  void OpenWith(const Scales& scales) {
    size_t count = 1;
    for (const int64_t n : scales.shape) count *= static_cast<size_t>(n);
    values_.resize(count);
    std::vector<uint8_t> bytes;
    for (float& value : values_) {
      value = std::uniform_real_distribution<float>(1e-4f, 1e-2f)(rng_);
      const uint16_t half = kernels::FloatToBfloat16(value);
      if (scales.dtype == "BF16") value = kernels::Bfloat16ToFloat(half);
      const auto* from = scales.dtype == "BF16" ? reinterpret_cast<const uint8_t*>(&half)
                                                : reinterpret_cast<const uint8_t*>(&value);
      bytes.insert(bytes.end(), from, from + (scales.dtype == "BF16" ? 2 : 4));
    }
    Open([&](testing::SafetensorsWriter* writer) {
      writer->Add("m.weight" + scales.suffix, scales.dtype, scales.shape, bytes);
    });
  }
  absl::StatusOr<TensorView> Bind() {
    spec_ = ModelSpec();
    WeightBinder binder(*file_, &spec_);
    ASSIGN_OR_RETURN(const TensorView view, binder.Matrix("m.weight", kRows, cols_));
    RETURN_IF_ERROR(binder.CheckAllUsed({}, {}));
    return view;
  }
  std::string BindError() {
    const auto view = Bind();
    return view.ok() ? "no error" : std::string(view.status().message());
  }

  bool broken_ = false;  // the last code is not a number
  int64_t cols_ = 384;   // three blocks, also where the last ends inside
  std::mt19937 rng_{testing::RandomSeed()};
  testing::TempFolder folder_;
  std::unique_ptr<WeightsFile> file_;
  ModelSpec spec_;
  std::vector<uint8_t> codes_;
  std::vector<float> values_;
};

TEST_F(Fp8WeightsTest, EveryLayoutOfScalesMeansCodeTimesScale) {
  for (const int64_t cols : {384, 300}) {
    cols_ = cols;
    for (const Scales* scales : {&kPerTensor, &kScalar, &kPerRow, &kPerRowFlat, &kPerBlock}) {
      OpenWith(*scales);
      const auto view = Bind();
      ASSERT_TRUE(view.ok()) << view.status();
      // Rows that are not whole blocks are rounded to bf16.
      const bool whole = cols % 128 == 0;
      ASSERT_EQ(view->dtype, whole ? DType::kFP8_128 : DType::kBF16);
      EXPECT_EQ(spec_.weights_type, "fp8");
      EXPECT_EQ(spec_.num_parameters, kRows * cols);
      std::vector<float> got(static_cast<size_t>(cols));
      for (int64_t r = 0; r < kRows; ++r) {
        const int64_t row_bytes = whole ? kernels::RowBytes(view->dtype, cols) : 2 * cols;
        kernels::DequantizeRow(view->dtype, view->ptr<uint8_t>() + r * row_bytes, cols, got.data());
        for (int64_t c = 0; c < cols; ++c) {
          const float exact = kernels::E4m3ToFloat(codes_[static_cast<size_t>(r * cols + c)]) *
                              values_[scales->index(r, c)];
          const float want =
              whole ? exact : kernels::Bfloat16ToFloat(kernels::FloatToBfloat16(exact));
          ASSERT_EQ(got[static_cast<size_t>(c)], want)
              << scales->suffix << " " << scales->shape.size() << " at " << r << ", " << c;
        }
      }
    }
  }
}

TEST_F(Fp8WeightsTest, WhatIsNotDecodedIsRefused) {
  Open([](testing::SafetensorsWriter*) {});
  EXPECT_THAT(BindError(), HasSubstr("has no scales for it"));
  Open([](testing::SafetensorsWriter* writer) {
    writer->AddZeros("m.weight_scale", {kRows, 1});
    writer->AddZeros("m.input_scale", {1});
  });
  EXPECT_THAT(BindError(), HasSubstr("static scale of activations"));
  Open([](testing::SafetensorsWriter* writer) { writer->AddZeros("m.weight_scale", {4, 3}); });
  EXPECT_THAT(BindError(), HasSubstr("has shape [4, 3]"));
  Open([](testing::SafetensorsWriter* writer) {
    writer->Add("m.weight_scale", "I32", {1}, {0, 0, 0, 0});
  });
  EXPECT_THAT(BindError(), HasSubstr("i32"));
  broken_ = true;
  OpenWith(kPerRow);
  EXPECT_THAT(BindError(), HasSubstr("not numbers"));
}

// Weights that a checkpoint leaves unquantised are read as they are: all of them here.
TEST(Fp8Config, SchemesOfE4m3AreReadAndOthersRefused) {
  const auto error = [](const json& quantization) {
    return EditedCheckpoint("llama", [&](json* c) { (*c)["quantization_config"] = quantization; })
        .Error();
  };
  EXPECT_EQ(error({{"quant_method", "compressed-tensors"}, {"format", "float-quantized"}}),
            "no error");
  EXPECT_EQ(error({{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}, {"fmt", "e4m3"}}),
            "no error");
  EXPECT_THAT(error({{"quant_method", "fp8"}, {"weight_block_size", {64, 128}}}),
              HasSubstr("weight_block_size"));
  EXPECT_THAT(error({{"quant_method", "fp8"}, {"fmt", "e5m2"}}), HasSubstr("e5m2"));
  EXPECT_THAT(error({{"quant_method", "compressed-tensors"}, {"format", "pack-quantized"}}),
              HasSubstr("pack-quantized"));
  EXPECT_THAT(error({{"quant_method", "awq"}}), HasSubstr("awq"));
}

// A llama checkpoint with a second file that has `scales` of its first layer.
class KvScalesTest : public ::testing::Test {
 protected:
  absl::StatusOr<ModelSpec> Load(const std::vector<std::pair<std::string, float>>& scales) {
    const std::filesystem::path source =
        StrCat(LONGSTRIDE_SOURCE_DIR, "/tests/parity/families/data/llama/");
    ASSIGN_OR_RETURN(const auto whole, WeightsFile::Open(source.string()));
    json places;
    for (const std::string& name : whole->tensor_names()) places[name] = "a.safetensors";
    testing::SafetensorsWriter writer;
    for (const auto& [name, value] : scales) {
      const std::string full = StrCat("model.layers.0.self_attn.", name);
      writer.AddFloats(full, {1}, {value});
      places[full] = "b.safetensors";
    }
    std::ifstream config(source / "config.json");
    folder_.Write("config.json", std::string(std::istreambuf_iterator<char>(config), {}));
    std::filesystem::remove(folder_.File("a.safetensors"));
    std::filesystem::create_symlink(source / "model.safetensors", folder_.File("a.safetensors"));
    folder_.Write("b.safetensors", writer.Finish());
    folder_.Write("model.safetensors.index.json", json{{"weight_map", places}}.dump());
    ASSIGN_OR_RETURN(file_, WeightsFile::Open(folder_.path()));
    return LoadModelSpec(*file_);
  }
  testing::TempFolder folder_;
  std::unique_ptr<WeightsFile> file_;
};

TEST_F(KvScalesTest, ScalesOfTheCacheAreReadFromEitherPlace) {
  for (const std::string inside : {"", "k_proj."}) {
    const std::string of_values = inside.empty() ? "" : "v_proj.";
    const auto spec = Load({{inside + "k_scale", 0.25f}, {of_values + "v_scale", 3.0f}});
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->layers[0].attention.k_scale, 0.25f);
    EXPECT_EQ(spec->layers[0].attention.v_scale, 3.0f);
    EXPECT_EQ(spec->layers[1].attention.k_scale, 1.0f);
    EXPECT_EQ(spec->layers[1].attention.v_scale, 1.0f);
    file_.reset();
  }
}

TEST_F(KvScalesTest, AScaleThatIsNoneIsRefused) {
  for (const float value : {0.0f, -1.0f, std::numeric_limits<float>::infinity()}) {
    const auto spec = Load({{"k_scale", value}});
    EXPECT_THAT(std::string(spec.status().message()), HasSubstr("k_scale"));
    file_.reset();
  }
}

}  // namespace
}  // namespace longstride::model
