// Everything that is generated from the option table.
#pragma once

#include <string>

#include "config/config_loader.h"

namespace longstride {

// The options part of --help, wrapped at 100 columns.
std::string OptionsHelp();
// docs/configuration.md.
std::string ConfigurationMarkdown();
// docs/configuration.schema.json: JSON Schema (draft 7) of the configuration file.
std::string ConfigurationSchema();
// The effective configuration as a configuration file, each value's source in a comment.
std::string EffectiveConfig(const LoadedConfig& loaded);

}  // namespace longstride
