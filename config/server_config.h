// Everything an operator can set. Each field is declared once more, in option_table.cpp, with its
// name, range and help; its default is the initialiser here, its type the field's. Flags,
// environment variables, file keys, --help, the JSON Schema and docs/configuration.md all follow
// from that pair.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "config/base/status.h"

namespace longstride {

struct ServerConfig {
  // Model.
  std::string model;
  std::string served_name;
  std::string chat_template;
  int64_t max_context = 0;
  std::string device = "auto";
  std::string kernels = "auto";
  std::string cpu_isa = "auto";
  int64_t threads = 0;

  struct {
    std::string dtype = "f16";
    int64_t memory = 0;  // bytes
    double memory_fraction = 0;
    int64_t host_memory = 0;
  } kv;

  struct {
    bool graphs = true;
  } cuda;

  struct {
    std::string plan;
    std::string profile;
  } sparsity;

  struct {
    double sample_rate = 0;
  } fidelity;

  struct {
    bool enabled = true;
    double fraction = 1.0;
    int64_t snapshot_interval = 2048;
    bool generated_pages = true;
  } prefix_cache;

  struct {
    int64_t max_running = 64;
    int64_t max_step_tokens = 512;
    int64_t max_step_logits = 512;
    int64_t max_prefills = 4;
    absl::Duration inter_token_bound = absl::Milliseconds(400);
    int64_t reserve_tokens = 1024;
    absl::Duration priority_ageing = absl::Seconds(60);
    int64_t max_preemptions = 3;
    int64_t max_bypasses = 16;
    bool check_integrity = false;
  } scheduler;

  struct {
    int64_t queued_requests = 1024;
    int64_t queued_prompt_tokens = int64_t{8} << 20;
    int64_t choices = 8;
    int64_t output_queue = int64_t{1} << 20;  // bytes
    absl::Duration slow_client_timeout = absl::Seconds(60);
  } limits;

  std::string host = "127.0.0.1";
  bool insecure = false;
  std::string api_keys;

  int64_t workers = 2;

  struct {
    int64_t port = 8000;
    int64_t threads = 2;
    int64_t max_connections = 4096;
    int64_t max_body = int64_t{64} << 20;  // bytes
    absl::Duration header_timeout = absl::Seconds(10);
    absl::Duration body_timeout = absl::Seconds(60);
    absl::Duration idle_timeout = absl::Seconds(75);
    absl::Duration write_timeout = absl::Seconds(60);
    absl::Duration ping_interval = absl::Seconds(15);
    bool playground = true;
  } http;

  struct {
    bool enabled = true;
    int64_t port = 8001;
    int64_t max_calls = 4096;
    absl::Duration max_connection_age = absl::ZeroDuration();
    bool reflection = true;
  } grpc;

  struct {
    std::string cert;
    std::string key;
  } tls;

  struct {
    std::string level = "info";
    std::string format = "human";
    bool prompts = false;
  } log;

  struct {
    std::string file;
    bool text = false;
    std::string on_failure = "refuse";
    int64_t queue = 64 << 20;
  } audit;

  struct {
    bool gateway_aliases = true;
  } metrics;

  struct {
    absl::Duration grace = absl::Seconds(45);
  } drain;
};

// Rules between options; the ranges of single options are checked where they are read.
// INVALID_ARGUMENT names the options that contradict each other.
absl::Status ValidateConfig(const ServerConfig& config);

// Whether `host` is reachable from this machine alone: 127.0.0.0/8, ::1 or "localhost".
bool IsLoopbackHost(const std::string& host);

}  // namespace longstride
