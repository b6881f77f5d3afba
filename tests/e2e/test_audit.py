"""The audit log of a real server: one record a request over HTTP and gRPC, across a crash and a full
disk, checked by the command and by a reader that is not ours."""

import concurrent.futures
import hashlib
import json
import pathlib
import resource
import signal
import subprocess
import tempfile
import time
import unittest

import harness

ZEROS = "0" * 64


def verify(path, *flags):
    return subprocess.run([harness.binary(), "audit", "verify", path, *flags], capture_output=True,
                          text=True, timeout=60)


class Audit(unittest.TestCase):
    def setUp(self):
        if not harness.binary().exists() or not harness.model().exists():
            self.skipTest("the server is not built or the model is missing")
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name) / "audit.jsonl"

    def serve(self, *flags):
        return harness.Server("--max-context", "1024", "--audit-file", str(self.path), *flags)

    def records(self):
        """Every record, its hash and chain checked with nothing but a hash function."""
        records, before = [], ZEROS
        for number, line in enumerate(self.path.read_bytes().splitlines(), 1):
            body = line[:line.rindex(b',"hash":"')]
            digest = hashlib.sha256(body).hexdigest()
            self.assertEqual(line[len(body):], b',"hash":"%s"}' % digest.encode())
            self.assertTrue(body.endswith(b',"prev":"%s"' % before.encode()), number)
            before = digest
            try:
                records.append(json.loads(line))
                self.assertEqual(records[-1]["seq"], number)
            except json.JSONDecodeError:
                records.append({"kind": "torn"})
        return records

    def complete(self, server, **fields):
        return server.fetch("/v1/completions", {
            "prompt": "The miller said", "max_tokens": 8, "ignore_eos": True, **fields})

    def test_http_and_grpc_are_recorded_alike(self):
        server = self.serve()
        try:
            status, _, text = self.complete(server, seed=5)
            self.assertEqual(status, 200, text)
            import grpc
            pb, stubs = harness.messages(), harness.stubs()
            with grpc.insecure_channel(server.grpc_address) as channel:
                request = pb.GenerateRequest(text=pb.TextPrompt(text="The miller said"))
                request.stopping.max_tokens = 8
                request.stopping.ignore_end_of_sequence = True
                request.sampling.seed = 5
                list(stubs.InferenceStub(channel).Generate(request))
            ids = json.loads(server.fetch("/tokenize", {"prompt": "The miller said"})[2])["tokens"]
        finally:
            server.stop()
        start, http, grpc_record, stop = self.records()
        self.assertEqual([start["kind"], stop["kind"]], ["start", "stop"])
        self.assertEqual(http["data"]["id"], json.loads(text)["id"])
        self.assertEqual(http["data"]["model_digest"], start["data"]["model_digest"])
        self.assertEqual(http["data"]["plan_digest"], start["data"]["plan_digest"])
        self.assertEqual(http["data"]["prompt_sha256"], hashlib.sha256(
            ",".join(map(str, ids)).encode()).hexdigest())
        for key in ("prompt_sha256", "sampling", "model_digest", "plan_digest"):
            self.assertEqual(http["data"][key], grpc_record["data"][key], key)
        # The same seed, prompt, model and plan: the same answer.
        self.assertEqual(http["data"]["outcome"]["output_sha256"],
                         grpc_record["data"]["outcome"]["output_sha256"])
        self.assertNotIn("miller", self.path.read_text())

    def test_verify_finds_a_changed_byte_and_a_missing_end(self):
        server = self.serve()
        try:
            for _ in range(3):
                self.assertEqual(self.complete(server)[0], 200)
        finally:
            server.stop()
        done = verify(self.path)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("5 records", done.stdout)
        head = done.stdout.split("head ")[1].strip()
        self.assertEqual(verify(self.path, "--head", head).returncode, 0)
        whole = self.path.read_bytes()
        lines = whole.splitlines(keepends=True)
        self.path.write_bytes(b"".join(lines[:2]) + lines[2].replace(b'"n":1', b'"n":2')
                              + b"".join(lines[3:]))
        done = verify(self.path)
        self.assertEqual(done.returncode, 1)
        self.assertIn("line 3 was changed", done.stderr)
        self.path.write_bytes(b"".join(lines[:-1]))
        self.assertEqual(verify(self.path).returncode, 0)
        done = verify(self.path, "--head", head)
        self.assertEqual(done.returncode, 1)
        self.assertIn("its end was removed", done.stderr)
        self.assertEqual(verify(self.path, "--head", "abc").returncode, 2)
        self.assertEqual(verify(self.path.with_name("none")).returncode, 2)

    def test_the_chain_survives_a_kill_under_load(self):
        server = self.serve()
        answered = 0
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            def ask(_):
                try:
                    return self.complete(server, max_tokens=2)[0] == 200
                except OSError:
                    return False
            futures = [pool.submit(ask, i) for i in range(200)]
            while sum(f.done() for f in futures) < 20:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGKILL)
            answered = sum(f.result() for f in futures)
        server.process.wait()
        # Every answer that a client has seen to its end is on disk.
        requests = [r for r in self.records() if r["kind"] == "request"]
        self.assertGreaterEqual(len(requests), answered)
        with open(self.path, "ab") as file:
            file.write(b'{"seq":9999,"time":"2026-')  # what a write that was cut off leaves
        server = self.serve()
        try:
            self.assertEqual(self.complete(server)[0], 200)
            self.assertIn("cut off", server.output())
            second = subprocess.run(
                [harness.binary(), "serve", harness.model(), "--http-port", "0", "--no-grpc-enabled",
                 "--audit-file", self.path], capture_output=True, text=True, timeout=60)
            self.assertEqual(second.returncode, 2)
            self.assertIn("another process", second.stderr)
        finally:
            server.stop()
        self.assertEqual([r["kind"] for r in self.records()][len(requests) + 1:],
                         ["torn", "start", "request", "stop"])
        done = verify(self.path)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("1 of them cut off", done.stdout)

    def test_a_full_disk(self):
        for choice, status in (("refuse", 503), ("continue", 200)):
            with self.subTest(choice):
                self.path = pathlib.Path(self.folder.name) / choice
                server = self.serve("--audit-on-failure", choice)
                try:
                    self.assertEqual(self.complete(server)[0], 200)
                    hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)[1]
                    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE,
                                     (self.path.stat().st_size + 9, hard))
                    self.assertEqual(self.complete(server)[0], 200)  # under way when it happens
                    self.assertEqual(self.complete(server)[0], status)
                    self.assertEqual(server.status("/health/ready"), status)
                    metrics = server.metrics()
                    self.assertGreater(metrics["longstride:audit_failures_total"], 0)
                    self.assertGreater(metrics["longstride:audit_pending_records"], 0)
                    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
                    end = time.monotonic() + 20
                    while server.metrics()["longstride:audit_pending_records"] > 0:
                        self.assertLess(time.monotonic(), end)
                        time.sleep(0.1)
                    self.assertEqual(self.complete(server)[0], 200)
                finally:
                    server.stop()
                requests = [r for r in self.records() if r["kind"] == "request"]
                self.assertEqual(len(requests), 3 if choice == "refuse" else 4)


if __name__ == "__main__":
    unittest.main()
