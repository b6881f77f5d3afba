// Every refusal says what, got, allowed; has the right code; and leaves the engine untouched.
#include <cmath>
#include <random>

#include "tests/frontend/server_fixture.h"

namespace longstride::testing {
namespace {

using nlohmann::json;

class BadInput : public ServerTest {
 protected:
  explicit BadInput(std::vector<std::string> labels = {}) {
    served_.causal = labels.empty();
    served_.labels = std::move(labels);
    StartServer();
  }
  ~BadInput() override { EXPECT_EQ(engine_.submitted(), 0); }

  json Error(const RawResponse& response, int status) {
    EXPECT_EQ(response.status, status) << response.body;
    const json body = Json(response);
    EXPECT_TRUE(body.contains("error")) << response.body;
    if (!body.contains("error")) return json::object();
    EXPECT_TRUE(body["error"]["message"].is_string());
    EXPECT_GE(body["error"]["message"].get<std::string>().size(), 15u);
    return body["error"];
  }
  // A completion request with these members is refused with `param`.
  std::string Refused(json members, const std::string& param, int status = 400) {
    json body = {{"prompt", "hello"}};
    body.update(members);
    const json error = Error(Post("/v1/completions", body), status);
    EXPECT_EQ(error["param"], param) << error;
    return error.value("message", "");
  }
};

TEST_F(BadInput, PromptTooLongNamesBothNumbers) {
  const json error =
      Error(Post("/v1/completions", {{"prompt", std::string(600, 'x')}, {"max_tokens", 100}}), 400);
  EXPECT_EQ(error["code"], "context_length_exceeded");
  EXPECT_EQ(error["param"], "prompt");
  const std::string message = error["message"];
  for (const char* part : {"600", "100", "700", "512"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << ": " << message;
  }
}

TEST_F(BadInput, EmptyPrompt) {
  Refused({{"prompt", ""}}, "prompt");
  Refused({{"prompt", json::array()}}, "prompt");
  Refused({{"prompt", nullptr}}, "prompt");
}

TEST_F(BadInput, WrongTypes) {
  Refused({{"prompt", 5}}, "prompt");
  Refused({{"prompt", {{"a", 1}}}}, "prompt");
  Refused({{"prompt", {"a", 5}}}, "prompt");
  Refused({{"prompt", {1, "a"}}}, "prompt");
  Refused({{"prompt", {1.5}}}, "prompt");
  Refused({{"temperature", "hot"}}, "temperature");
  Refused({{"max_tokens", 1.5}}, "max_tokens");
  Refused({{"max_tokens", "5"}}, "max_tokens");
  Refused({{"stream", 1}}, "stream");
  Refused({{"stream_options", 1}}, "stream_options");
  Refused({{"stream_options", {{"include_usage", "yes"}}}}, "stream_options.include_usage");
  Refused({{"stop", 1}}, "stop");
  Refused({{"stop", {1}}}, "stop");
  Refused({{"logit_bias", {1}}}, "logit_bias");
  Refused({{"logit_bias", {{"x", 1}}}}, "logit_bias");
  Refused({{"logit_bias", {{"1", "x"}}}}, "logit_bias");
  Refused({{"seed", 1e300}}, "seed");
  Refused({{"model", 1}}, "model");
  Refused({{"stop_token_ids", {"a"}}}, "stop_token_ids");
}

TEST_F(BadInput, ValuesOutOfRange) {
  const std::string message = Refused({{"temperature", -0.1}}, "temperature");
  EXPECT_NE(message.find("-0.1"), std::string::npos) << message;
  EXPECT_NE(message.find("0 to 100"), std::string::npos) << message;
  Refused({{"temperature", 101}}, "temperature");
  Refused({{"top_p", 0}}, "top_p");
  Refused({{"top_p", 1.01}}, "top_p");
  Refused({{"top_k", -2}}, "top_k");
  Refused({{"min_p", 2}}, "min_p");
  Refused({{"typical_p", 0}}, "typical_p");
  Refused({{"repetition_penalty", 0}}, "repetition_penalty");
  Refused({{"presence_penalty", 2.5}}, "presence_penalty");
  Refused({{"frequency_penalty", -3}}, "frequency_penalty");
  Refused({{"n", 0}}, "n");
  Refused({{"n", 9}}, "n");
  Refused({{"n", 1000000000}}, "n");
  Refused({{"max_tokens", -1}}, "max_tokens");
  Refused({{"max_tokens", 0}}, "max_tokens");
  Refused({{"max_tokens", 9223372036854775807}}, "max_tokens");
  Refused({{"min_tokens", -1}}, "min_tokens");
  Refused({{"min_tokens", 17}}, "min_tokens");
  Refused({{"logprobs", -1}}, "logprobs");
  Refused({{"logprobs", 21}}, "logprobs");
  Refused({{"prompt_logprobs", 6}}, "prompt_logprobs");
  Refused({{"timeout", 0}}, "timeout");
  Refused({{"timeout", -5}}, "timeout");
  Refused({{"priority", 1e12}}, "priority");
}

TEST_F(BadInput, NumbersThatJsonCannotHold) {
  for (const char* value : {"NaN", "Infinity", "-Infinity", "1e400", "-1e999"}) {
    const std::string body = std::string(R"({"prompt":"a","temperature":)") + value + "}";
    Error(Fetch(port(), "POST", "/v1/completions", body), 400);
  }
}

TEST_F(BadInput, TokenIdsOutOfTheVocabularyOrTwice) {
  for (const char* name : {"stop_token_ids", "allowed_token_ids", "banned_token_ids"}) {
    const std::string message = Refused({{name, {kByteVocab}}}, name);
    EXPECT_NE(message.find("260"), std::string::npos) << message;
    EXPECT_NE(message.find("0 to 259"), std::string::npos) << message;
    Refused({{name, {-1}}}, name);
    Refused({{name, {5, 6, 5}}}, name);
    Refused({{name, std::vector<int>(1025, 1)}}, name);
    Refused({{name, {9223372036854775807}}}, name);
  }
  Refused({{"prompt", {97, kByteVocab}}}, "prompt");
  Refused({{"prompt", {-1}}}, "prompt");
  Refused({{"logit_bias", {{"260", 1}}}}, "logit_bias");
  Refused({{"logit_bias", {{"-1", 1}}}}, "logit_bias");
  Refused({{"logit_bias", {{"1", 101}}}}, "logit_bias");
  Refused({{"logit_bias", {{"1", 1}, {"01", 1}}}}, "logit_bias");
  json many = json::object();
  for (int i = 0; i < 1025; ++i) many[std::to_string(i)] = 1;
  Refused({{"logit_bias", many}}, "logit_bias");
  Refused({{"allowed_token_ids", {1, 2}}, {"banned_token_ids", {2, 1}}}, "banned_token_ids");
}

TEST_F(BadInput, StopStrings) {
  Refused({{"stop", std::vector<std::string>(17, "x")}}, "stop");
  Refused({{"stop", ""}}, "stop");
  Refused({{"stop", std::string(257, 'x')}}, "stop");
  // 10 MB of them.
  Refused({{"stop", std::vector<std::string>(10000, std::string(1000, 'x'))}}, "stop");
}

TEST_F(BadInput, CacheSalt) {
  Refused({{"cache_salt", ""}}, "cache_salt");
  Refused({{"cache_salt", std::string(1025, 'x')}}, "cache_salt");
  Refused({{"cache_salt", "a b"}}, "cache_salt");
  Refused({{"cache_salt", "\xC3\xA9"}}, "cache_salt");
  Refused({{"cache_salt", std::string("a\0b", 3)}}, "cache_salt");
}

TEST_F(BadInput, UnknownModelNamesTheServedOne) {
  const json error = Error(Post("/v1/completions", {{"model", "gpt-5"}, {"prompt", "x"}}), 404);
  EXPECT_EQ(error["code"], "model_not_found");
  EXPECT_EQ(error["param"], "model");
  EXPECT_NE(error["message"].get<std::string>().find("'bytes'"), std::string::npos);
  Error(Get("/v1/models/other"), 404);
}

TEST_F(BadInput, UnsupportedFieldsAreRefusedByName) {
  for (const char* name :
       {"suffix", "guided_json", "structured_outputs", "grammar", "bad_words", "lora"}) {
    const std::string message = Refused({{name, "x"}}, name);
    EXPECT_NE(message.find(name), std::string::npos);
    Refused({{"prompt", ""}, {name, nullptr}}, "prompt");  // null asks for nothing
  }
  Refused({{"best_of", 2}}, "best_of");
  Refused({{"truncate_prompt_tokens", 5}}, "truncate_prompt_tokens");
  Refused({{"response_format", {{"type", "json_object"}}}}, "response_format");
  Refused({{"response_format", "text"}}, "response_format");
  Refused({{"use_beam_search", true}}, "use_beam_search");
}

TEST_F(BadInput, JsonBrokenAtAnyByte) {
  const std::string good = R"({"prompt":["a\u00e9\ud83d\ude00b"],"n":1,"x":[true,null,-1.5e3]})";
  for (std::size_t cut = 0; cut < good.size(); ++cut) {
    Error(Fetch(port(), "POST", "/v1/completions", good.substr(0, cut) + " "), 400);
  }
  std::mt19937 random(7);
  RawClient client(port());
  for (int i = 0; i < 300; ++i) {
    std::string bad = good;
    bad[random() % bad.size()] = static_cast<char>(random() % 256);
    bad += "}}";  // one changed byte cannot balance both
    client.Send(MakeRequest("POST", "/v1/completions", bad));
    EXPECT_EQ(client.ReadResponse().status, 400) << bad;
  }
}

TEST_F(BadInput, ErrorsDoNotQuoteTheBody) {
  const std::string body = R"({"prompt":"the secret )"
                           "\xFF"
                           R"(words"})";
  const json error = Error(Fetch(port(), "POST", "/v1/completions", body), 400);
  const std::string message = error["message"];
  EXPECT_EQ(message.find("secret"), std::string::npos);
  EXPECT_NE(message.find("UTF-8"), std::string::npos) << message;
  EXPECT_NE(message.find("byte"), std::string::npos) << message;
}

TEST_F(BadInput, InvalidUtf8AndSurrogates) {
  for (const char* text : {"\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82",
                           "\\ud800", "\\udc00x", "\\ud800\\ud800"}) {
    Error(Fetch(port(), "POST", "/v1/completions", std::string(R"({"prompt":")") + text + "\"}"),
          400);
  }
}

TEST_F(BadInput, DeepNesting) {
  for (const char* open : {"[", "{\"a\":"}) {
    std::string body = R"({"prompt":"a","x":)";
    for (int i = 0; i < 200000; ++i) body += open;
    const json error = Error(Fetch(port(), "POST", "/v1/completions", body), 400);
    EXPECT_NE(error["message"].get<std::string>().find("64"), std::string::npos);
  }
  Error(Fetch(port(), "POST", "/v1/completions", std::string(200000, '[')), 400);
}

TEST_F(BadInput, NotAnObjectOrTwiceTheSameKey) {
  Error(Fetch(port(), "POST", "/v1/completions", "[]"), 400);
  Error(Fetch(port(), "POST", "/v1/completions", "\"x\""), 400);
  Error(Fetch(port(), "POST", "/v1/completions"), 400);
  Error(Fetch(port(), "POST", "/v1/completions", R"({"prompt":"a","n":1,"n":2})"), 400);
  Error(Fetch(port(), "POST", "/v1/completions", R"({"prompt":"a"} {"n":2})"), 400);
}

TEST_F(BadInput, ChatBodies) {
  const auto refused = [&](json members, const std::string& param) {
    json body = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
    body.update(members);
    const json error = Error(Post("/v1/chat/completions", body), 400);
    EXPECT_EQ(error["param"], param) << error;
  };
  refused({{"messages", nullptr}}, "messages");
  refused({{"messages", json::array()}}, "messages");
  refused({{"messages", {1}}}, "messages[0]");
  refused({{"messages", {{{"role", "king"}, {"content", "x"}}}}}, "messages[0].role");
  refused({{"messages", {{{"role", "user"}, {"content", 5}}}}}, "messages[0].content");
  refused({{"messages",
            {{{"role", "user"},
              {"content", {{{"type", "text"}, {"text", "a"}}, {{"type", "image_url"}}}}}}}},
          "messages[0].content[1]");
  refused({{"messages", {{{"role", "assistant"}, {"tool_calls", {{{"id", "1"}}}}}}}},
          "messages[0].tool_calls[0]");
  refused({{"messages",
            {{{"role", "assistant"},
              {"tool_calls", {{{"function", {{"name", "f"}, {"arguments", "[1]"}}}}}}}}}},
          "messages[0].tool_calls[0].function.arguments");
  refused({{"messages", std::vector<json>(4097, {{"role", "user"}, {"content", "x"}})}},
          "messages");
  refused({{"tools", 1}}, "tools");
  refused({{"tools", {{{"type", "retrieval"}}}}}, "tools[0].type");
  refused({{"tools", {{{"type", "function"}, {"function", {{"name", "bad name"}}}}}}},
          "tools[0].function.name");
  refused(
      {{"tools", std::vector<json>(129, {{"type", "function"}, {"function", {{"name", "f"}}}})}},
      "tools");
  refused({{"tool_choice", "required"}}, "tool_choice");
  refused({{"tool_choice", {{"type", "function"}, {"function", {{"name", "f"}}}}}}, "tool_choice");
  refused({{"top_logprobs", 3}}, "top_logprobs");
  refused({{"logprobs", true}, {"top_logprobs", 21}}, "top_logprobs");
  refused({{"max_completion_tokens", 0}}, "max_tokens");
  refused({{"functions", {1}}}, "functions");
  refused({{"modalities", {"text", "audio"}}}, "modalities");
  refused({{"chat_template_kwargs", 1}}, "chat_template_kwargs");
  refused({{"continue_final_message", true}}, "continue_final_message");
}

TEST_F(BadInput, EmbeddingBodies) {
  Error(Post("/v1/embeddings", {{"input", json::array()}}), 400);
  Error(Post("/v1/embeddings", {{"input", std::vector<std::string>(2049, "x")}}), 400);
  EXPECT_EQ(Error(Post("/v1/embeddings", {{"input", "x"}, {"dimensions", 1}}), 400)["param"],
            "dimensions");
  EXPECT_EQ(
      Error(Post("/v1/embeddings", {{"input", "x"}, {"encoding_format", "int8"}}), 400)["param"],
      "encoding_format");
  EXPECT_EQ(Error(Post("/v1/embeddings", {{"input", {"x", ""}}}), 400)["param"], "input[1]");
}

TEST_F(BadInput, ClassificationBodies) {
  const json none = Error(Post("/v1/classify", {{"input", "x"}}), 400);
  EXPECT_EQ(none["param"], "model");
  EXPECT_NE(none["message"].get<std::string>().find("no classifier"), std::string::npos) << none;
  Error(Post("/v1/classify", json::object()), 400);
}

class BadEncoderInput : public BadInput {
 protected:
  BadEncoderInput() : BadInput({"no", "yes"}) {}
};

TEST_F(BadEncoderInput, TasksLengthsAndEmptyInputs) {
  for (const char* path : {"/v1/classify", "/v1/embeddings"}) {
    Error(Post(path, {{"input", json::array()}}), 400);
    const json empty = Error(Post(path, {{"input", ""}}), 400);
    EXPECT_EQ(empty["param"], "input");
    EXPECT_EQ(empty["message"], "'input' is empty; send a text or token ids");
    EXPECT_EQ(Error(Post(path, {{"input", {"x", ""}}}), 400)["param"], "input[1]");
    const json late = Error(Post(path, {{"input", {"x", std::string(513, 'x')}}}), 400);
    EXPECT_EQ(late["param"], "input[1]");
    EXPECT_EQ(late["code"], "context_length_exceeded");
    EXPECT_EQ(late["message"],
              "the text has 513 tokens; this model's context is 512 tokens: shorten the text");
  }
  const json text = Error(Post("/v1/completions", {{"prompt", "x"}}), 400);
  EXPECT_EQ(text["param"], "model");
  EXPECT_NE(text["message"].get<std::string>().find("/v1/classify"), std::string::npos) << text;
  Error(Post("/v1/chat/completions",
             {{"messages", {{{"role", "user"}, {"content", "x"}}}}}), 400);
}

TEST_F(BadInput, TokenizerBodies) {
  Error(Post("/tokenize", json::object()), 400);
  Error(Post("/detokenize", json::object()), 400);
  Error(Post("/detokenize", {{"tokens", {kByteVocab}}}), 400);
  Error(Post("/detokenize", {{"tokens", "x"}}), 400);
}

TEST_F(BadInput, FuzzedBodiesAreAnsweredAndNothingBreaks) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const std::vector<std::string> values = {
      "null", "true", "-1",  "1e308",  "18446744073709551615", "\"\"",        "\"x\"",
      "[]",   "{}",   "[1]", "[null]", "{\"type\":\"text\"}",  "[[[[[1]]]]]", "0.1"};
  const std::vector<std::string> names = {
      "messages",       "model",       "n",     "stop",       "stream",
      "stream_options", "temperature", "tools", "top_k",      "seed",
      "top_p",          "tool_choice", "user",  "logit_bias", "max_tokens"};
  RawClient client(port());
  for (int i = 0; i < 500; ++i) {
    std::string body = "{\"prompt\":{}";  // never valid, so that nothing is submitted
    for (const std::string& name : names) {
      if (random() % 2 == 0) continue;
      body += ",\"" + name + "\":" + values[random() % values.size()];
    }
    body += "}";
    const char* const paths[] = {"/v1/completions", "/v1/chat/completions", "/v1/embeddings",
                                 "/detokenize"};
    client.Send(MakeRequest("POST", paths[i % 4], body));
    const RawResponse response = client.ReadResponse();
    EXPECT_TRUE(response.status == 400 || response.status == 404) << response.status << body;
  }
}

}  // namespace
}  // namespace longstride::testing
