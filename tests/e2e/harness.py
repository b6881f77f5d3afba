"""A real server process with the clients that the end-to-end tests use.

LONGSTRIDE_TEST_BINARY  the server (default: build/cpu/server/longstride)
LONGSTRIDE_TEST_MODEL   the checkpoint (default: models/SmolLM2-135M-Instruct.Q4_1.gguf, which can chat)
"""

import importlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEFAULT_MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_BINARY = ROOT / "build" / "cpu" / "server" / "longstride"


def binary():
    return pathlib.Path(os.environ.get("LONGSTRIDE_TEST_BINARY", DEFAULT_BINARY))


def model():
    return pathlib.Path(os.environ.get("LONGSTRIDE_TEST_MODEL", DEFAULT_MODEL))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`longstride serve` on free ports; stop() gives the exit status."""

    def __init__(self, *flags, wait=True, checkpoint=None):
        self.http_port = free_port()
        self.grpc_port = free_port()
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(
            [binary(), "serve", "--model", checkpoint or model(), "--http-port", str(self.http_port),
             "--grpc-port", str(self.grpc_port), *flags],
            stdout=self.log, stderr=subprocess.STDOUT)
        if wait:
            self.wait_ready()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_address(self):
        return f"127.0.0.1:{self.grpc_port}"

    def output(self):
        self.log.seek(0)
        return self.log.read()

    def wait_ready(self, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended early:\n{self.output()}")
            if self.status("/health/ready") == 200:
                return
            time.sleep(0.05)
        raise RuntimeError(f"the server is not ready after {seconds} s:\n{self.output()}")

    def fetch(self, path, body=None, headers=None, timeout=60):
        """(status, headers, text); no exception for an HTTP error."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers or {})
        if data is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read().decode()

    def status(self, path):
        try:
            return self.fetch(path, timeout=5)[0]
        except OSError:
            return 0

    def metrics(self):
        """{'name{label="x"}': value} of /metrics."""
        text = self.fetch("/metrics")[2]
        values = {}
        for line in text.splitlines():
            match = re.match(r"([a-zA-Z_:][^ ]*) ([^ ]+)$", line)
            if match and not line.startswith("#"):
                values[match.group(1)] = float(match.group(2))
        return values

    def metric(self, name, **labels):
        """Sum of the series of a name that carry the labels."""
        total = 0.0
        for key, value in self.metrics().items():
            if key != name and not key.startswith(name + "{"):
                continue
            if all(f'{label}="{text}"' in key for label, text in labels.items()):
                total += value
        return total

    def wait_metric(self, name, expected, seconds=30, **labels):
        end = time.monotonic() + seconds
        while True:
            value = self.metric(name, **labels)
            if value == expected or time.monotonic() > end:
                return value
            time.sleep(0.05)

    def resident_bytes(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def stop(self, sig=signal.SIGTERM, seconds=60):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.log.close()


class ServerTest(unittest.TestCase):
    """One server for the tests of a class; the pool must be empty again after each test."""

    flags = ()
    model = staticmethod(model)

    @classmethod
    def setUpClass(cls):
        if not binary().exists():
            raise unittest.SkipTest(f"{binary()} is not built")
        if not cls.model().exists():
            raise unittest.SkipTest(f"{cls.model()} is missing; scripts/fetch_models.py gets it")
        cls.server = Server(*cls.flags, checkpoint=cls.model())

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        if status != 0:
            raise AssertionError(f"the server ended with status {status}")

    def assert_pool_empty(self):
        """No request runs or waits, and no page is held but by the prefix cache."""
        self.assertEqual(self.server.wait_metric("longstride:num_requests_running", 0), 0)
        self.assertEqual(self.server.wait_metric("longstride:num_requests_waiting", 0), 0)
        self.assertEqual(self.server.wait_metric("longstride:kv_pages", 0, state="used"), 0)
        self.assertEqual(self.server.wait_metric("longstride:open_streams", 0), 0)


def messages():
    """The Python messages of our .proto, generated afresh."""
    return _generated()[0]


def stubs():
    return _generated()[1]


_lock = threading.Lock()
_modules = []


def _generated():
    with _lock:
        if not _modules:
            from grpc_tools import protoc
            folder = tempfile.mkdtemp(prefix="longstride-proto-")
            status = protoc.main(["protoc", f"--proto_path={ROOT / 'proto'}",
                                  f"--python_out={folder}", f"--grpc_python_out={folder}",
                                  str(ROOT / "proto/longstride/v1/inference.proto")])
            if status != 0:
                raise RuntimeError("protoc failed")
            sys.path.insert(0, folder)
            _modules.append(importlib.import_module("longstride.v1.inference_pb2"))
            _modules.append(importlib.import_module("longstride.v1.inference_pb2_grpc"))
        return _modules
