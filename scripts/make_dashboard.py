#!/usr/bin/env python3
"""Writes docker/grafana/dashboards/longstride.json from the panels below.

Dashboards are long and repetitive; what differs between panels is a title, a unit and queries. A test
checks that the file is what this script writes and that every query names a metric that exists.
"""

import json
import pathlib

OUTPUT = pathlib.Path(__file__).resolve().parents[1] / "docker/grafana/dashboards/longstride.json"
PREFIX = "longstride:"
SELECT = '{instance=~"$instance"}'


def rate(metric, by=""):
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate({PREFIX}{metric}{SELECT}[$__rate_interval]))"


def gauge(metric, by=""):
    group = f" by ({by})" if by else ""
    return f"sum{group} ({PREFIX}{metric}{SELECT})"


def quantiles(metric):
    buckets = rate(f"{metric}_bucket", "le")
    return [(f"histogram_quantile({q}, {buckets})", f"p{int(q * 100)}") for q in (0.5, 0.9, 0.99)]


# (row title, [(panel title, unit, [(query, legend), ...]), ...])
ROWS = [
    ("Requests", [
        ("Running and waiting", "short", [(gauge("num_requests_running"), "running"),
                                          (gauge("num_requests_waiting"), "waiting")]),
        ("Ended, by reason", "reqps", [(rate("requests_finished_total", "reason"), "{{reason}}")]),
        ("Refused, by reason", "reqps", [(rate("admission_rejections_total", "reason"),
                                          "{{reason}}")]),
        ("Prompt tokens waiting", "short", [(gauge("prompt_tokens_waiting"), "tokens")]),
        ("Time to first token", "s", quantiles("time_to_first_token_seconds")),
        ("Between tokens", "s", quantiles("inter_token_latency_seconds")),
        ("Time in queue", "s", quantiles("request_queue_time_seconds")),
        ("Whole request", "s", quantiles("e2e_request_latency_seconds")),
    ]),
    ("Tokens", [
        ("Tokens per second", "short", [(rate("generation_tokens_total"), "generated"),
                                        (rate("prompt_tokens_total", "source"),
                                         "prompt, {{source}}")]),
        ("Prefix cache hits", "percentunit", [
            (f'{rate("prefix_cache_hits_total")} / {rate("prefix_cache_queries_total")}', "all"),
            (f'{rate("prefix_cache_generated_hits_total")} / '
             f'{rate("prefix_cache_queries_total")}', "generated pages")]),
        ("Prompt length", "short", quantiles("request_prompt_tokens")),
        ("Preemptions", "short", [(rate("preemptions_total"), "preemptions/s"),
                                  (rate("prefill_tokens_recomputed_total"),
                                   "tokens computed again/s")]),
    ]),
    ("Sparsity and KV cache", [
        ("Keys read, of those of dense attention", "percentunit", [
            (f'sum by (pattern) (rate({PREFIX}attention_keys_total{{instance=~"$instance",'
             'kind="read"}[$__rate_interval])) / sum by (pattern) '
             f'(rate({PREFIX}attention_keys_total{{instance=~"$instance",kind="causal"}}'
             '[$__rate_interval]))', "{{pattern}}")]),
        ("Keys attended per request, of those of dense attention", "percentunit",
         quantiles("kv_tokens_attended_ratio")),
        ("KV memory held by running requests", "percentunit",
         [(f"max ({PREFIX}kv_cache_usage_ratio{SELECT})", "share")]),
        ("Pages", "short", [(gauge("kv_pages", "group, state"), "{{group}} {{state}}")]),
        ("KV bytes", "bytes", [(gauge("kv_bytes_used", "group"), "{{group}}"),
                               (gauge("kv_cache_budget_bytes"), "budget")]),
        ("Pages freed, by cause", "short", [(rate("kv_pages_freed_total", "group, cause"),
                                             "{{group}} {{cause}}")]),
    ]),
    ("Steps", [
        ("Where steps spend their time", "percentunit", [
            (f'{rate("step_phase_seconds_total", "phase")} / ignoring (phase) group_left () '
             f'sum ({rate("step_phase_seconds_total", "phase")})', "{{phase}}")]),
        ("Step duration", "s", quantiles("step_seconds")),
        ("Tokens computed", "short", [(rate("step_tokens_total", "kind"), "{{kind}}")]),
        ("Sequences in a step", "short", quantiles("step_sequences")),
    ]),
    ("Front ends", [
        ("HTTP requests", "reqps", [(rate("http_requests_total", "route, status"),
                                     "{{route}} {{status}}")]),
        ("gRPC calls", "reqps", [(rate("grpc_requests_total", "method, code"),
                                  "{{method}} {{code}}")]),
        ("Open streams and connections", "short", [
            (gauge("open_streams", "transport"), "{{transport}} streams"),
            (gauge("open_connections", "transport"), "{{transport}} connections")]),
        ("Clients that left, stalled streams", "short", [
            (rate("clients_gone_total", "transport"), "{{transport}} gone/s"),
            (rate("client_stall_seconds_count"), "stalls/s")]),
        ("Front-end time per streamed token", "s", [
            (f'{rate("write_seconds_total", "transport")} / '
             f'{rate("written_tokens_total", "transport")}', "{{transport}}")]),
    ]),
    ("Process", [
        ("Memory", "bytes", [
            ('sum (process_resident_memory_bytes{instance=~"$instance"})', "resident"),
            (gauge("model_bytes", "part"), "{{part}}")]),
        ("CPU", "short", [
            ('sum (rate(process_cpu_seconds_total{instance=~"$instance"}[$__rate_interval]))',
             "cores")]),
        ("Ready, draining", "short", [(gauge("ready"), "ready"), (gauge("draining"), "draining")]),
    ]),
]


def panel(number, title, unit, queries, x, y):
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "gridPos": {"h": 7, "w": 6, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0,
                                     "custom": {"fillOpacity": 8, "showPoints": "never"}},
                        "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"},
                    "tooltip": {"mode": "multi"}},
        "targets": [{"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend}
                    for i, (query, legend) in enumerate(queries)],
    }


def dashboard():
    panels, number, y = [], 1, 0
    for row_title, row in ROWS:
        panels.append({"id": number, "type": "row", "title": row_title, "collapsed": False,
                       "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}, "panels": []})
        number += 1
        y += 1
        for index, (title, unit, queries) in enumerate(row):
            if index and index % 4 == 0:
                y += 7
            panels.append(panel(number, title, unit, queries, 6 * (index % 4), y))
            number += 1
        y += 7
    return {
        "uid": "longstride",
        "title": "Longstride",
        "tags": ["longstride"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [{
            "name": "instance",
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "prometheus"},
            "query": {"query": f"label_values({PREFIX}build_info, instance)", "refId": "A"},
            "includeAll": True,
            "multi": True,
            "refresh": 2,
            "current": {"text": "All", "value": "$__all"},
        }]},
        "panels": panels,
    }


def text():
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(text(), encoding="utf-8")
