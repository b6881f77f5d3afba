#include "server/engine/fair_share.h"

#include <algorithm>
#include <limits>

#include "config/base/check.h"

namespace longstride::engine {

int32_t FairShare::Join(std::string_view client) {
  auto [it, added] = index_.try_emplace(std::string(client), 0);
  if (added) {
    if (free_.empty()) {
      it->second = static_cast<int32_t>(clients_.size());
      clients_.emplace_back();
    } else {
      it->second = free_.back();
      free_.pop_back();
    }
    clients_[it->second] = Client{.name = it->first};
  }
  Client& c = clients_[it->second];
  if (c.active++ == 0) {
    double floor = std::numeric_limits<double>::max();
    for (const Client& other : clients_) {
      if (&other != &c && other.active > 0) floor = std::min(floor, other.counter);
    }
    if (num_active_ == 0) floor = last_left_counter_;
    c.counter = std::max(c.counter, floor);
    ++num_active_;
  }
  return it->second;
}

void FairShare::Leave(int32_t client) {
  Client& c = clients_[client];
  LS_CHECK_GT(c.active, 0);
  if (--c.active > 0) return;
  --num_active_;
  c.left_at = ++leaves_;
  last_left_counter_ = std::max(last_left_counter_, c.counter);
  if (index_.size() > kMaxIdleClients + static_cast<size_t>(num_active_)) ForgetOldest();
}

void FairShare::ForgetOldest() {
  int32_t oldest = -1;
  for (size_t i = 0; i < clients_.size(); ++i) {
    const Client& c = clients_[i];
    if (c.active > 0 || c.left_at == 0) continue;
    if (oldest < 0 || c.left_at < clients_[oldest].left_at) oldest = static_cast<int32_t>(i);
  }
  if (oldest < 0) return;
  index_.erase(clients_[oldest].name);
  clients_[oldest] = Client{};
  free_.push_back(oldest);
}

}  // namespace longstride::engine
