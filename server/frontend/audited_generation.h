// What the audit log says of requests and of the model that answers them.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "server/engine/request.h"
#include "server/frontend/api_types.h"
#include "server/frontend/audit_log.h"
#include "server/frontend/generation.h"
#include "server/frontend/served_model.h"

namespace longstride::frontend {

// Data of the record "start": what is served.
std::string AuditStart(const ServedModel& model);

// Data of the record "request" as far as it is known before the answer, without the closing brace.
// `api`: "completion", "chat", "embedding", "classification". `requests`: one per prompt, alike in all but the
// prompt. Text only with `text`.
std::string AuditRequest(std::string_view api, const GenerationInfo& info,
                         const CallContext& context,
                         std::span<const engine::GenerationRequest> requests, bool text);

// `inner`, with a record in `log` once it ends. kFinished comes when the record is on disk, or when
// the log says that it cannot be written for now. Dropped before its end it is recorded as
// cancelled. `request`: AuditRequest's.
std::unique_ptr<Generation> AuditGeneration(std::unique_ptr<Generation> inner, std::string request,
                                            AuditLog* log, std::function<void()> notify);

}  // namespace longstride::frontend
