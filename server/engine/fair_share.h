// Fair order between clients: virtual token counters (arXiv 2401.00588), weighed by the KV work that
// long contexts really cause.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace longstride::engine {

// Every client has a counter of the work it received; who has the lowest goes first. A client that
// comes back after a pause is lifted to the lowest counter of the active ones, so that idle time
// earns no credit. Engine thread only.
class FairShare {
 public:
  // Work of one token that attends to `keys` keys; generated tokens weigh twice, as in the paper.
  static double TokenWork(double keys, bool generated) {
    return (generated ? 2.0 : 1.0) * (1.0 + keys / kKeysPerTokenWork);
  }

  // A request of `client` arrived; returns the client's index for the calls below. Balance with
  // Leave.
  int32_t Join(std::string_view client);
  void Leave(int32_t client);
  void Charge(int32_t client, double work) { clients_[client].counter += work; }
  double counter(int32_t client) const { return clients_[client].counter; }
  int32_t num_known_clients() const { return static_cast<int32_t>(index_.size()); }

 private:
  // Attending to this many keys costs about as much as a token's matrix products.
  static constexpr double kKeysPerTokenWork = 4096;
  // Idle clients whose counters are remembered.
  static constexpr size_t kMaxIdleClients = 4096;

  struct Client {
    std::string name;
    double counter = 0;
    int32_t active = 0;  // requests waiting or running
    uint64_t left_at = 0;
  };
  void ForgetOldest();

  std::vector<Client> clients_;
  std::vector<int32_t> free_;
  std::unordered_map<std::string, int32_t> index_;
  int32_t num_active_ = 0;
  double last_left_counter_ = 0;
  uint64_t leaves_ = 0;
};

}  // namespace longstride::engine
