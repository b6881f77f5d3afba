#include "server/frontend/model_json.h"

#include "server/frontend/json_writer.h"

namespace longstride::frontend {
namespace {

void WriteModel(const ServedModel& model, JsonWriter* json) {
  json->BeginObject();
  json->Field("id", model.name);
  json->Field("object", "model");
  json->Field("created", absl::ToUnixSeconds(model.created));
  json->Field("owned_by", "longstride");
  json->Field("max_model_len", model.max_context);
  json->Field("system_fingerprint", model.Fingerprint());
  json->Field("model_digest", model.model_digest);
  json->Key("sparsity");
  json->BeginObject();
  json->Field("plan", model.plan_name);
  json->Field("digest", model.plan_digest);
  json->EndObject();
  json->Key("meta");
  json->BeginObject();
  json->Field("family", model.family);
  json->Field("weights_type", model.weights_type);
  json->Field("kv_dtype", model.kv_dtype);
  json->Field("device", model.device);
  json->Field("layers", model.num_layers);
  json->Field("embedding_dim", model.dim);
  json->Field("parameters", model.num_parameters);
  json->Field("vocab_size", model.vocab_size);
  json->Field("chat", model.chat_template != nullptr);
  json->Field("encoder", !model.causal);
  json->Key("labels");
  json->BeginArray();
  for (const std::string& label : model.labels) json->String(label);
  json->EndArray();
  json->EndObject();
  json->EndObject();
}

}  // namespace

std::string ModelListJson(const ServedModel& model) {
  std::string body;
  JsonWriter json(&body);
  json.BeginObject();
  json.Field("object", "list");
  json.Key("data");
  json.BeginArray();
  WriteModel(model, &json);
  json.EndArray();
  json.EndObject();
  return body;
}

std::string ModelJson(const ServedModel& model) {
  std::string body;
  JsonWriter json(&body);
  WriteModel(model, &json);
  return body;
}

std::string TokenizeJson(const TokenizeResult& result, bool llama_cpp, bool with_pieces) {
  std::string body;
  JsonWriter json(&body);
  json.BeginObject();
  json.Field("count", static_cast<int64_t>(result.ids.size()));
  json.Field("max_model_len", result.max_context);
  json.Key("tokens");
  json.BeginArray();
  for (std::size_t i = 0; i < result.ids.size(); ++i) {
    if (llama_cpp && with_pieces) {
      json.BeginObject();
      json.Field("id", result.ids[i]);
      json.Field("piece", result.pieces[i].bytes);
      json.EndObject();
    } else {
      json.Int(result.ids[i]);
    }
  }
  json.EndArray();
  if (with_pieces && !llama_cpp) {
    json.Key("token_strs");
    json.BeginArray();
    for (const TokenPiece& piece : result.pieces) json.String(piece.bytes);
    json.EndArray();
  }
  json.EndObject();
  return body;
}

}  // namespace longstride::frontend
