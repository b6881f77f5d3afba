// DefaultTemplateFor
#include "config/base/status.h"
#include "model/text/chat_template.h"

namespace longstride::model {
namespace {

// Gemma's turns: the system message opens the first user turn; the assistant is called model.
constexpr std::string_view kGemma = R"({{- bos_token -}}
{%- set ns = namespace(system='', first=true) -%}
{%- for message in messages -%}
  {%- if message.role == 'system' and loop.first -%}
    {%- set ns.system = message.content | trim ~ '\n\n' -%}
  {%- elif message.role in ['user', 'assistant'] -%}
    {%- if (message.role == 'user') != ns.first and ns.first -%}
      {{- raise_exception('the first message after the system message must be from the user') -}}
    {%- endif -%}
    {{- '<start_of_turn>' ~ ('model' if message.role == 'assistant' else 'user') ~ '\n' -}}
    {{- ns.system ~ (message.content | trim) ~ '<end_of_turn>\n' -}}
    {%- set ns.system = '' -%}
    {%- set ns.first = false -%}
  {%- else -%}
    {{- raise_exception('Gemma has no messages of role ' ~ message.role ~ ' here; allowed are system '
                        ~ '(first), user and assistant') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<start_of_turn>model\n' -}}
{%- endif -%}
)";

constexpr std::string_view kChatMl = R"({%- for message in messages -%}
  {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
)";

}  // namespace

absl::StatusOr<std::string_view> DefaultTemplateFor(std::string_view architecture) {
  for (const std::string_view name : {"gemma", "gemma2", "gemma3", "gemma3_text"}) {
    if (architecture == name) return kGemma;
  }
  if (architecture == "chatml") return kChatMl;
  return absl::FailedPreconditionError(
      "this checkpoint has no chat template; pass --chat-template FILE");
}

}  // namespace longstride::model
