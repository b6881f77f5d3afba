#include "config/base/version.h"

namespace longstride {

const char* Version() { return LONGSTRIDE_VERSION; }
const char* BuildCommit() { return LONGSTRIDE_COMMIT; }

const char* BuildCompiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace longstride
