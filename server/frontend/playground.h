#pragma once

#include <string>

namespace longstride::frontend {

// The playground: one self-contained page (playground/index.html, embedded by the build).
std::string PlaygroundHtml();

}  // namespace longstride::frontend
