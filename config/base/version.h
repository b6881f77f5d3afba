#pragma once

namespace longstride {

// "0.1.0", and the commit it was built from ("a1b2c3d4e5f6", "unknown" outside a checkout).
const char* Version();
const char* BuildCommit();
// "gcc 12.2.0".
const char* BuildCompiler();

}  // namespace longstride
