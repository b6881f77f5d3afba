"""The process: start, ports, keys, drain, and what idle streams cost."""

import hashlib
import json
import signal
import socket
import subprocess
import tempfile
import time
import unittest

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import harness


class Process(unittest.TestCase):
    def setUp(self):
        if not harness.binary().exists() or not harness.model().exists():
            self.skipTest("the server is not built or the model is missing")

    def test_ports_in_use_are_clear_errors(self):
        server = harness.Server()
        try:
            for flag, port in (("--http-port", server.http_port), ("--grpc-port", server.grpc_port)):
                other = "--grpc-port" if flag == "--http-port" else "--http-port"
                done = subprocess.run(
                    [harness.binary(), "serve", "--model", harness.model(), flag, str(port), other,
                     str(harness.free_port())], capture_output=True, text=True, timeout=60)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(str(port), done.stderr + done.stdout)
                self.assertIn("port", done.stderr + done.stdout)
        finally:
            self.assertEqual(server.stop(), 0)

    def test_drain_finishes_streams_and_refuses_new_work(self):
        server = harness.Server()
        data = json.dumps({"prompt": "Count to a thousand: 1, 2, 3,", "max_tokens": 200,
                           "ignore_eos": True, "stream": True}).encode()
        client = socket.create_connection(("127.0.0.1", server.http_port))
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n"
                       % len(data) + data)
        received = client.recv(4096)
        self.assertIn(b"200 OK", received)
        channel = grpc.insecure_channel(server.grpc_address)
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        end = time.monotonic() + 5  # it follows the service within a fraction of a second
        while (health.Check(health_pb2.HealthCheckRequest()).status != serving
               and time.monotonic() < end):
            time.sleep(0.02)
        self.assertEqual(health.Check(health_pb2.HealthCheckRequest()).status, serving)
        server.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 10
        while server.status("/health/ready") == 200 and time.monotonic() < end:
            time.sleep(0.01)
        status, _, _ = server.fetch("/v1/completions", {"prompt": "x"})
        self.assertEqual(status, 503)
        self.assertEqual(server.status("/health/live"), 200)
        while chunk := client.recv(65536):
            received += chunk
        self.assertIn(b"data: [DONE]", received)
        self.assertIn(b'"finish_reason":"length"', received)
        client.close()
        channel.close()
        self.assertEqual(server.process.wait(30), 0)
        server.stop()

    def test_api_keys(self):
        digest = hashlib.sha256(b"secret-1").hexdigest()
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
            keys.write(f"alice:{digest}\n")
            keys.flush()
            server = harness.Server("--api-keys", keys.name)
            try:
                self.assertEqual(server.status("/v1/models"), 401)
                self.assertEqual(server.status("/metrics"), 401)
                self.assertEqual(server.status("/health/live"), 200)
                status, _, _ = server.fetch("/v1/models",
                                            headers={"Authorization": "Bearer secret-1"})
                self.assertEqual(status, 200)
                with grpc.insecure_channel(server.grpc_address) as channel:
                    stub, pb = harness.stubs().InferenceStub(channel), harness.messages()
                    with self.assertRaises(grpc.RpcError) as caught:
                        stub.ListModels(pb.ListModelsRequest())
                    self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAUTHENTICATED)
                    stub.ListModels(pb.ListModelsRequest(),
                                    metadata=[("authorization", "Bearer secret-1")])
            finally:
                self.assertEqual(server.stop(), 0)

    def test_a_thousand_queued_streams_cost_little(self):
        server = harness.Server("--limits-queued-requests", "2000")
        clients = []
        try:
            data = json.dumps({"messages": [{"role": "user", "content": "hold"}], "max_tokens": 2000,
                               "ignore_eos": True, "stream": True}).encode()
            request = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\n"
                       b"Content-Length: %d\r\n\r\n" % len(data) + data)

            def open_some(count):
                for _ in range(count):
                    client = socket.create_connection(("127.0.0.1", server.http_port))
                    client.sendall(request)
                    clients.append(client)
                for client in clients[-count:]:  # the role chunk comes while the request is queued
                    self.assertTrue(client.recv(64).startswith(b"HTTP/1.1 200 OK"))

            open_some(200)
            before = server.resident_bytes()
            open_some(1000)
            each = (server.resident_bytes() - before) / 1000
            print(f"{each / 1024:.1f} KiB a queued stream")
            self.assertLess(each, 20 * 1024)
        finally:
            for client in clients:
                client.close()
            self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main()
