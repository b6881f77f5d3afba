#include "server/cli/example.h"

#include "config/base/strings.h"

namespace longstride::cli {

std::string ExampleRequest(const ServerConfig& config, int32_t http_port,
                           const model::Model& model) {
  const bool tls = !config.tls.cert.empty();
  const bool any = config.host == "0.0.0.0" || config.host == "::";
  const std::string host = any ? "127.0.0.1" : config.host;
  const bool bare_v6 = host.find(':') != std::string::npos && host.front() != '[';
  const std::string base = StrCat(tls ? "https://" : "http://", bare_v6 ? "[" : "", host,
                                  bare_v6 ? "]" : "", ":", http_port);
  // A checkpoint without a chat template completes text; one with a template chats.
  const bool chat = model.chat_template() != nullptr;
  std::string line = StrCat("curl ", tls ? "--insecure " : "", base,
                            chat ? "/v1/chat/completions" : "/v1/completions",
                            " -H 'Content-Type: application/json'");
  if (!config.api_keys.empty()) line += " -H \"Authorization: Bearer $LONGSTRIDE_KEY\"";
  line += chat
              ? " -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}],"
                " \"max_tokens\": 100}'"
              : " -d '{\"prompt\": \"The sky is blue because\", \"max_tokens\": 50}'";
  return StrCat("\nReady. Try:\n\n  ", line, "\n\n",
                config.http.playground ? StrCat("or open ", base, "/ in a browser.\n\n") : "");
}

}  // namespace longstride::cli
