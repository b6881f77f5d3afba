#include <cmath>
#include <limits>
#include <random>

#include <gtest/gtest.h>

#include "server/frontend/error_mapping.h"
#include "server/frontend/json_limits.h"
#include "server/frontend/json_writer.h"
#include "server/frontend/utf8.h"

namespace longstride::frontend {
namespace {

using nlohmann::json;

TEST(JsonLimits, ParsesWhatTheReferenceParses) {
  for (const char* text : {"{}", "[]", "null", "true", "-0", "1.5e-7", "\"\\u00e9\\n\"",
                           R"({"a":[1,{"b":null}],"c":"x"})", "18446744073709551615",
                           "[[],[[]],{}]", " \n\t[1 , 2]\r\n"}) {
    const auto parsed = ParseJson(text);
    ASSERT_TRUE(parsed.ok()) << text << parsed.status();
    EXPECT_EQ(*parsed, json::parse(text)) << text;
  }
}

TEST(JsonLimits, AgreesWithTheReferenceOnRandomDocuments) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const std::string alphabet = "{}[]\",:0123456789.eE+-truefalsn\\ u\x01\xC3\xA9";
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    const int length = static_cast<int>(random() % 12);
    for (int j = 0; j < length; ++j) text += alphabet[random() % alphabet.size()];
    const json reference = json::parse(text, nullptr, false);
    const auto parsed = ParseJson(text);
    EXPECT_EQ(parsed.ok(), !reference.is_discarded()) << text;
    if (parsed.ok() && !reference.is_discarded()) {
      EXPECT_EQ(*parsed, reference) << text;
    }
  }
}

TEST(JsonLimits, BoundsDepthValuesAndMembers) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(ParseJson(nested(64)).ok());
  EXPECT_FALSE(ParseJson(nested(65)).ok());
  JsonLimits limits;
  limits.max_values = 4;
  EXPECT_TRUE(ParseJson("[1,2,3]", limits).ok());
  EXPECT_FALSE(ParseJson("[1,2,3,4]", limits).ok());
  limits.max_members = 1;
  EXPECT_FALSE(ParseJson(R"({"a":1,"b":2})", limits).ok());
}

TEST(JsonLimits, RefusesDuplicateKeysAtAnyLevel) {
  EXPECT_FALSE(ParseJson(R"({"a":1,"a":1})").ok());
  EXPECT_FALSE(ParseJson(R"([{"x":{"a":1,"\u0061":2}}])").ok());
  EXPECT_TRUE(ParseJson(R"([{"a":1},{"a":1}])").ok());
}

TEST(JsonFields, NamesThePathAndListsWhatWasNotAskedFor) {
  const json body = {{"a", 1}, {"b", "x"}, {"c", nullptr}, {"d", 2.0}, {"e", 1.5}};
  JsonFields fields(body, "outer");
  std::optional<int64_t> number;
  EXPECT_TRUE(fields.Int("a", &number).ok());
  EXPECT_EQ(number, 1);
  EXPECT_EQ(ToApiError(fields.Int("b", &number)).param, "outer.b");
  number.reset();
  EXPECT_TRUE(fields.Int("c", &number).ok());
  EXPECT_FALSE(number.has_value());
  EXPECT_TRUE(fields.Int("d", &number).ok());
  EXPECT_EQ(number, 2);
  EXPECT_EQ(fields.Ignored(), std::vector<std::string>{"e"});
  EXPECT_FALSE(fields.Int("e", &number).ok());
}

TEST(JsonWriter, WritesDocumentsThatReadBack) {
  std::string text;
  JsonWriter writer(&text);
  writer.BeginObject();
  writer.Field("int", int64_t{-5});
  writer.Field("text", "a\"b");
  writer.Key("list");
  writer.BeginArray();
  writer.Double(0.1);
  writer.Float(0.1f);
  writer.Double(std::numeric_limits<double>::infinity());
  writer.Float(std::nanf(""));
  writer.Null();
  writer.Bool(true);
  writer.BeginObject();
  writer.EndObject();
  writer.EndArray();
  writer.Field("last", 1.0);
  writer.EndObject();
  EXPECT_EQ(text, R"({"int":-5,"text":"a\"b","list":[0.1,0.1,null,null,null,true,{}],"last":1})");
  EXPECT_FALSE(json::parse(text, nullptr, false).is_discarded());
}

TEST(JsonWriter, AnyBytesBecomeAValidString) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int i = 0; i < 5000; ++i) {
    std::string bytes(random() % 20, '\0');
    for (char& c : bytes) c = static_cast<char>(random() % 256);
    std::string text;
    AppendJsonString(bytes, &text);
    const json parsed = json::parse(text, nullptr, false);
    ASSERT_FALSE(parsed.is_discarded()) << text;
    if (IsValidUtf8(bytes)) {
      EXPECT_EQ(parsed.get<std::string>(), bytes);
    }
  }
}

TEST(Utf8, AgreesWithTheReferenceOnAllShortSequences) {
  for (int a = 0; a < 256; ++a) {
    for (int b = 0; b < 256; ++b) {
      const std::string bytes = {static_cast<char>(a), static_cast<char>(b), 'x'};
      std::string quoted = "\"";
      for (const char c : bytes) {
        const auto u = static_cast<unsigned char>(c);
        quoted += u < 0x20 || c == '"' || c == '\\' ? 'x' : c;
      }
      quoted += "\"";
      EXPECT_EQ(IsValidUtf8(quoted), json::accept(quoted)) << a << " " << b;
    }
  }
}

TEST(ErrorMapping, FaultsOfARequestAreNeverRetriedBySdks) {
  const auto retried = [](int status) {
    return status == 408 || status == 409 || status == 429 || status >= 500;
  };
  for (const absl::StatusCode code :
       {absl::StatusCode::kInvalidArgument, absl::StatusCode::kOutOfRange,
        absl::StatusCode::kFailedPrecondition, absl::StatusCode::kUnimplemented,
        absl::StatusCode::kNotFound, absl::StatusCode::kAlreadyExists,
        absl::StatusCode::kUnauthenticated, absl::StatusCode::kPermissionDenied}) {
    EXPECT_FALSE(retried(ToApiError(absl::Status(code, "m")).http_status)) << int(code);
  }
  for (const absl::StatusCode code :
       {absl::StatusCode::kResourceExhausted, absl::StatusCode::kUnavailable,
        absl::StatusCode::kInternal, absl::StatusCode::kDeadlineExceeded}) {
    EXPECT_TRUE(retried(ToApiError(absl::Status(code, "m")).http_status)) << int(code);
  }
}

TEST(ErrorMapping, CarriesParamCodeAndRetryAfter) {
  const absl::Status status = WithRetryAfter(
      WithErrorCode(WithParam(absl::ResourceExhaustedError("full"), "prompt"), "queue"), 7);
  const ApiError error = ToApiError(status);
  EXPECT_EQ(error.http_status, 429);
  EXPECT_EQ(error.grpc_code, 8);
  EXPECT_EQ(error.retry_after_seconds, 7);
  EXPECT_EQ(ErrorBody(error),
            R"({"error":{"message":"full","type":"rate_limit_error","param":"prompt",)"
            R"("code":"queue"}})");
  EXPECT_EQ(ErrorBody(ToApiError(absl::InvalidArgumentError("x"))),
            R"({"error":{"message":"x","type":"invalid_request_error","param":null,)"
            R"("code":null}})");
}

}  // namespace
}  // namespace longstride::frontend
