"""A small HTTP client for the serving benchmarks: streamed completions, timed token by token.

Only the standard library, so that the benchmark measures the servers and not a client framework.
"""

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A server process on a port of its own; ready when `ready_path` answers 200."""

    def __init__(self, command, port, ready_path, log_path):
        self.port = port
        self.log = open(log_path, "wb")
        start = time.monotonic()
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{command[0]} exited with {self.process.returncode}; see {log_path}")
            try:
                status, _ = self.request("GET", ready_path)
                if status == 200:
                    break
            except OSError:
                pass
            if time.monotonic() - start > 120:
                raise RuntimeError(f"{command[0]} was not ready within 120 s; see {log_path}")
            time.sleep(0.01)
        self.ready_seconds = time.monotonic() - start

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def memory_bytes(self):
        """Resident bytes, mapped files included; shared pages counted in full."""
        with open(f"/proc/{self.process.pid}/status") as f:
            for line in f:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        raise RuntimeError("no VmRSS")

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Timing:
    """One streamed completion: seconds from sending to each content event."""

    def __init__(self):
        self.events = []
        self.usage = None

    @property
    def ttft(self):
        return self.events[0]

    def gaps(self):
        return [b - a for a, b in zip(self.events, self.events[1:])]


def stream_completion(server, prompt_ids, max_tokens):
    """Streams /v1/completions with a prompt of token ids, greedily, past end tokens."""
    body = {
        "prompt": prompt_ids,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": False,  # llama.cpp's name; unknown fields are ignored elsewhere
    }
    timing = Timing()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=3600)
    try:
        start = time.monotonic()
        connection.request("POST", "/v1/completions", json.dumps(body),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read()[:500]!r}")
        for line in response:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            if event.get("usage"):
                timing.usage = event["usage"]
            for choice in event.get("choices", []):
                if choice.get("finish_reason") is None or choice.get("text"):
                    timing.events.append(time.monotonic() - start)
    finally:
        connection.close()
    return timing


def run_parallel(functions):
    """Runs the functions on threads; returns their results in order, raising the first error."""
    results = [None] * len(functions)
    errors = []

    def run(i):
        try:
            results[i] = functions[i]()
        except Exception as error:  # noqa: BLE001 - re-raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return results


def random_prompt(rng, length, vocab):
    """Ids no prefix cache has seen; plain vocabulary only."""
    return [rng.randrange(1000, vocab - 1000) for _ in range(length)]


def seeded(seed):
    return random.Random(seed)
