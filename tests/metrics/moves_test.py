"""Every declared metric moves when a real server is driven; none is there for show."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))

import harness  # noqa: E402  (from the folder above)

MODELS = pathlib.Path(os.environ.get("LONGSTRIDE_TEST_MODELS", ROOT / "models"))
# Windowed layers beside full ones, so that pages are freed behind a window.
MODEL = MODELS / "gemma-3-270m-q4_k_m.gguf"
END_OF_SEQUENCE = 1
KEY = "a-key-for-this-test"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}

# Series that must have moved one by one, not only their metric.
SERIES = {
    "longstride:requests_finished_total": [("reason", reason) for reason in (
        "stop", "length", "error", "deadline", "abort", "disconnect", "slow_client")],
    "longstride:requests_submitted_total": [("kind", "generate"), ("kind", "embed")],
    "longstride:kv_pages_freed_total": [("cause", cause) for cause in (
        "window", "evict", "finish", "abort", "preempt")],
    "longstride:step_phase_seconds_total": [("phase", phase) for phase in (
        "plan", "selection", "attention", "linear", "other", "sampling", "emit")],
    "longstride:step_tokens_total": [("kind", "decode"), ("kind", "prefill")],
    "longstride:prompt_tokens_total": [("source", "computed"), ("source", "prefix_cache")],
    "longstride:attention_keys_total": [("kind", kind) for kind in ("causal", "visible", "read")],
    "longstride:call_duration_seconds_count": [("transport", "http"), ("transport", "grpc")],
    "longstride:authentication_failures_total": [("transport", "http"), ("transport", "grpc")],
    "longstride:written_tokens_total": [("transport", "http"), ("transport", "grpc")],
}
# Right from the start and then constant; their presence and value are what matters.
CONSTANT = {
    "longstride:build_info", "longstride:model_info", "longstride:cache_config_info",
    "longstride:kv_cache_budget_bytes", "longstride:model_bytes", "longstride:ready",
    "longstride:shadow_local_info", "process_start_time_seconds", "vllm:cache_config_info",
}


def declared():
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([a-z0-9_:]+)` \| (\w+) \|", page, re.MULTILINE))


def parse(text):
    values = {}
    for line in text.splitlines():
        match = re.match(r"([a-zA-Z_:][^ {]*(?:\{.*\})?) ([^ ]+)$", line)
        if match and not line.startswith("#"):
            values[match.group(1)] = float(match.group(2))
    return values


def name_of(series):
    return series.split("{")[0]


class Watcher:
    """Scrapes while the server is driven, since gauges come and go."""

    def __init__(self, server):
        self.server = server
        self.first = self.scrape()
        self.moved = set()
        self.largest = 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def scrape(self):
        return parse(self.server.fetch("/metrics", headers=AUTHORIZED)[2])

    def look(self):
        for series, value in self.scrape().items():
            if value != self.first.get(series, 0):
                self.moved.add(series)

    def run(self):
        while not self.stopped.wait(0.05):
            try:
                self.look()
            except OSError:
                pass  # the test that opens too many connections is at work

    def stop(self):
        self.stopped.set()
        self.thread.join()
        self.look()


class MetricsMove(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not harness.binary().exists() or not MODEL.exists():
            raise unittest.SkipTest("the server is not built or the model is missing")
        os.environ["LONGSTRIDE_TEST_MODEL"] = str(MODEL)
        cls.keys = tempfile.NamedTemporaryFile("w", suffix=".keys")
        cls.keys.write(f"tester:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
        cls.keys.flush()
        # A plan that loses something, and frees no page that the checkpoint's own would read.
        cls.plan = tempfile.NamedTemporaryFile("w", suffix=".json")
        json.dump({"name": "moves", "layers": [
            {"layers": "full", "pattern": "strided", "stride": 64, "local": 64}]}, cls.plan)
        cls.plan.flush()
        cls.audit = tempfile.NamedTemporaryFile(suffix=".jsonl")
        # Tight limits, so that a little load meets all of them.
        cls.server = harness.Server(
            "--sparsity-plan", cls.plan.name,
            "--api-keys", cls.keys.name, "--kv-memory", "24MiB", "--scheduler-reserve-tokens", "1",
            "--scheduler-max-running", "4", "--limits-choices", "4", "--limits-queued-requests", "6",
            "--limits-output-queue", "4KiB", "--limits-slow-client-timeout", "1s",
            "--http-max-connections", "32", "--prefix-cache-snapshot-interval", "64",
            "--max-context", "4096", "--drain-grace", "20s", "--fidelity-sample-rate", "0.1",
            "--audit-file", cls.audit.name, "--audit-on-failure", "continue", "--audit-queue", "4KiB")

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.audit.close()
        cls.plan.close()
        cls.keys.close()

    # One way of putting each part to work.

    def complete(self, prompt, **fields):
        fields = {"max_tokens": 8, "ignore_eos": True, "temperature": 0, **fields}
        return self.server.fetch("/v1/completions", {"prompt": prompt, **fields}, AUTHORIZED,
                                 timeout=300)

    def completed(self, prompt, **fields):
        status, _, text = self.complete(prompt, **fields)
        self.assertEqual(status, 200, text)
        return json.loads(text)

    def raw_stream(self, **fields):
        """A socket with a stream under way, of which nothing but the header was read."""
        data = json.dumps({"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True,
                           **fields}).encode()
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", self.server.http_port))
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer "
                       + KEY.encode() + b"\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        self.assertIn(b"200 OK", client.recv(256))
        return client

    def drive_prefixes(self):
        prompt = "In the year of the long winter the village council met. " * 60
        first = self.completed(prompt, max_tokens=80)
        self.completed(prompt + "And then")
        self.completed(prompt + first["choices"][0]["text"] + " The next day")
        self.completed("Stop here", stop=["e", "a", " "], max_tokens=200, ignore_eos=False)
        # No cache keeps the pages behind its window.
        self.completed("A prompt of its own. " * 250, cache_prompt=False)

    def drive_preemption_and_eviction(self):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for answer in pool.map(lambda i: self.complete(f"Story {i}: " * 40, max_tokens=300),
                                   range(4)):
                self.assertEqual(answer[0], 200, answer[2])

    def drive_full_queue(self):
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda i: self.complete(f"Burst {i}", max_tokens=100)[0],
                                    range(20)))
        self.assertIn(429, answers)
        self.assertIn(200, answers)

    def drive_deadlines(self):
        self.assertEqual(self.complete("Slow", max_tokens=3000, timeout=0.3)[0], 504)
        with self.raw_stream(timeout=0.5) as client:
            received = b""
            while chunk := client.recv(4096):
                received += chunk
            self.assertIn(b"[DONE]", received)

    def drive_slow_and_lost_clients(self):
        self.raw_stream().close()
        slow = self.raw_stream(logprobs=5)
        self.server_wait("longstride:requests_finished_total", 90, reason="slow_client")
        slow.close()

    def drive_errors(self):
        # The only token allowed ends the text, which must not end yet.
        self.assertEqual(self.complete("x", allowed_token_ids=[END_OF_SEQUENCE], min_tokens=4,
                                       ignore_eos=False)[0], 500)
        self.assertEqual(self.server.fetch("/v1/models")[0], 401)
        self.assertEqual(self.complete("x", model="nobody")[0], 404)

    def drive_embeddings(self):
        status, _, text = self.server.fetch("/v1/embeddings", {"input": "a text"}, AUTHORIZED)
        self.assertEqual(status, 200, text)

    def drive_audit(self):
        """A file that may not grow, until more records wait than there is room for."""
        pid = self.server.process.pid
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (os.path.getsize(self.audit.name), hard))
        try:
            for _ in range(12):
                self.completed("x", max_tokens=1)
            self.server_wait("longstride:audit_lost_records_total")
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))

    def drive_connections(self):
        clients = []
        for _ in range(48):
            client = socket.create_connection(("127.0.0.1", self.server.http_port))
            clients.append(client)
        time.sleep(0.3)
        for client in clients:
            client.close()

    def drive_grpc(self):
        import grpc
        pb, stubs = harness.messages(), harness.stubs()
        metadata = [("authorization", f"Bearer {KEY}")]
        with grpc.insecure_channel(self.server.grpc_address) as channel:
            stub = stubs.InferenceStub(channel)
            with self.assertRaises(grpc.RpcError):
                stub.ListModels(pb.ListModelsRequest())
            request = pb.GenerateRequest(text=pb.TextPrompt(text="Hello"))
            request.stopping.max_tokens = 20
            self.assertTrue(list(stub.Generate(request, metadata=metadata)))
            request.stopping.max_tokens = 2000
            request.stopping.ignore_end_of_sequence = True
            stream = stub.Generate(request, metadata=metadata)
            next(iter(stream))
            stream.cancel()
            deadline = stub.Generate(request, metadata=metadata, timeout=1.0)
            with self.assertRaises(grpc.RpcError):
                list(deadline)

    def server_wait(self, name, seconds=30, **labels):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for series, value in parse(
                    self.server.fetch("/metrics", headers=AUTHORIZED)[2]).items():
                if name_of(series) == name and value > 0 and all(
                        f'{label}="{text}"' in series for label, text in labels.items()):
                    return
            time.sleep(0.1)
        self.fail(f"{name} {labels} did not move within {seconds} s")

    def test_every_declared_metric_moves(self):
        watcher = Watcher(self.server)
        try:
            for drive in (self.drive_prefixes, self.drive_preemption_and_eviction,
                          self.drive_full_queue, self.drive_deadlines,
                          self.drive_slow_and_lost_clients, self.drive_errors,
                          self.drive_embeddings, self.drive_audit, self.drive_connections, self.drive_grpc):
                with self.subTest(drive.__name__):
                    drive()
            time.sleep(0.5)
        finally:
            watcher.stop()
        status, _, text = self.server.fetch("/metrics", headers=AUTHORIZED)
        self.assertEqual(status, 200)
        self.assertLessEqual(len(text), 64 * 1024)
        last = parse(text)

        exported = {re.sub(r"_(bucket|sum|count)$", "", name_of(series))
                    if declared().get(name_of(series)) is None else name_of(series)
                    for series in last}
        self.assertEqual(exported - set(declared()), set(), "exported but not declared")
        moved = {name_of(series) for series in watcher.moved}
        for name, kind in declared().items():
            with self.subTest(metric=name):
                if name in CONSTANT:
                    values = [v for s, v in last.items() if name_of(s) == name]
                    self.assertTrue(values and all(v > 0 for v in values), values)
                elif name == "longstride:draining":
                    continue  # below
                elif name.startswith("longstride:gpu_"):  # this server computes on the CPU
                    self.assertFalse([s for s in last if name_of(s) == name])
                else:
                    self.assertIn(name + "_count" if kind == "histogram" else name, moved)
        for name, labels in SERIES.items():
            for label, value in labels:
                with self.subTest(series=name, **{label: value}):
                    self.assertTrue(any(name_of(s) == name and f'{label}="{value}"' in s
                                        for s in watcher.moved))
        for state in ("free", "used", "cached", "snapshot"):
            with self.subTest(state=state):
                self.assertTrue(any(s.startswith("longstride:kv_pages{")
                                    and f'state="{state}"' in s for s in watcher.moved))

        self.check_draining()

    def check_draining(self):
        client = self.raw_stream(max_tokens=300)
        self.server.process.send_signal(signal.SIGTERM)
        self.server_wait("longstride:draining", 10)
        values = parse(self.server.fetch("/metrics", headers=AUTHORIZED)[2])
        self.assertEqual(values["longstride:ready"], 0)
        while client.recv(4096):
            pass
        client.close()
        self.assertEqual(self.server.process.wait(60), 0)


if __name__ == "__main__":
    unittest.main()
