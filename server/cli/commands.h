// One maker per command; each is in the file of its name.
#pragma once

#include "server/cli/command.h"

namespace longstride::cli {

Command InspectCommand();
Command FidelityCommand();
Command CalibrateHeadsCommand();
Command GenerateCommand();
Command TokenizeCommand();
Command BenchCommand();
Command ConfigCommand();
Command AuditCommand();
Command ReferenceCommand();
Command HashKeyCommand();

}  // namespace longstride::cli
