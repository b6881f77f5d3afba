// SIGTERM and SIGINT as something to wait for. No handler runs: the signals are blocked in every
// thread and taken by the thread that asks, which also works for process 1 of a container.
#pragma once

#include "absl/time/time.h"

namespace longstride::cli {

// Blocks the signals for the calling thread and all that it starts later, and ignores SIGPIPE and
// SIGXFSZ: a client that is gone and a file that may not grow are errors of a write. Call before
// any thread exists.
void BlockStopSignals();

// Waits for a stop signal; false on timeout. One thread at a time.
bool WaitForStopSignal(absl::Duration timeout);

}  // namespace longstride::cli
