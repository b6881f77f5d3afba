#include "server/cli/signals.h"

#include <pthread.h>

#include <csignal>

namespace longstride::cli {
namespace {

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

void BlockStopSignals() {
  const sigset_t set = StopSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

bool WaitForStopSignal(absl::Duration timeout) {
  const sigset_t set = StopSignals();
  const timespec wait = absl::ToTimespec(timeout);
  // A signal of another kind (EINTR) ends the wait early, which callers see as a timeout.
  return sigtimedwait(&set, nullptr, &wait) > 0;
}

}  // namespace longstride::cli
