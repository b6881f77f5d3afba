"""Clients that leave: queued, in prefill, in decode, as slow readers. Nothing may stay behind.

LONGSTRIDE_TEST_ABORTS   how many per transport (default 600; the full run uses 10000)
"""

import json
import os
import random
import socket
import struct
import threading
import time
import unittest

import grpc

import harness

COUNT = int(os.environ.get("LONGSTRIDE_TEST_ABORTS", "600"))
THREADS = 16
LONG = "The quick brown fox jumps over the lazy dog. " * 120


def in_threads(count, work):
    """Runs work(random) `count` times on some threads; the first exception is raised here."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    errors = []
    left = [count]
    lock = threading.Lock()

    def loop(number):
        rng = random.Random(seed + number)
        while not errors:
            with lock:
                if left[0] == 0:
                    return
                left[0] -= 1
            try:
                work(rng)
            except Exception as error:  # handed over to the main thread
                errors.append(error)

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def body(rng, stream):
    return {"prompt": (LONG if rng.random() < 0.3 else "Count: ") + str(rng.random()),
            "max_tokens": rng.choice([1, 8, 64]), "stream": stream,
            "n": rng.choice([1, 1, 1, 3]), "timeout": 300}


class Aborts(harness.ServerTest):
    # So little that a few prompts fill the prefix cache.
    flags = ("--kv-memory", "128MiB")

    def fill_prefix_cache(self):
        """Pages of the cache are memory that the server keeps: all are touched before it is measured."""
        cached = -1
        for number in range(40):
            before, cached = cached, self.server.metric("longstride:kv_pages", state="cached")
            if cached == before:
                return
            status, _, text = self.server.fetch(
                "/v1/completions", {"prompt": f"{number} {LONG}", "max_tokens": 1}, timeout=300)
            self.assertEqual(status, 200, text)
        self.fail(f"the prefix cache still grows at {cached} pages")

    def rest(self, rng):
        stream = rng.random() < 0.7
        data = json.dumps(body(rng, stream)).encode()
        request = (b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
                   b"Content-Length: %d\r\n\r\n" % len(data)) + data
        client = socket.socket()
        if rng.random() < 0.2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # a slow reader
        client.settimeout(180)
        client.connect(("127.0.0.1", self.server.http_port))
        try:
            how = rng.random()
            if how < 0.05:
                client.sendall(request[:rng.randrange(len(request))])
            else:
                client.sendall(request)
            if how < 0.4:  # queued or in prefill
                time.sleep(rng.random() * 0.05)
            elif how < 0.95:  # in decode
                client.recv(rng.choice([1, 64, 4096]))
            else:  # to the end
                while client.recv(65536):
                    if not stream:
                        break
                    if rng.random() < 0.5:
                        break
            if rng.random() < 0.5:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            client.close()

    def grpc_call(self, stub, pb, rng):
        asked = body(rng, True)
        request = pb.GenerateRequest(text=pb.TextPrompt(text=asked["prompt"]), n=asked["n"])
        request.stopping.max_tokens = asked["max_tokens"]
        call = stub.Generate(request, timeout=300)
        try:
            how = rng.random()
            if how < 0.4:
                time.sleep(rng.random() * 0.05)
            else:
                for _ in range(rng.choice([1, 2, 5])):
                    if next(call, None) is None:
                        break
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
        finally:
            call.cancel()

    def check(self, storm):
        self.fill_prefix_cache()
        storm(COUNT // 4)  # warm: pools, caches and allocator arenas reach their size
        self.assert_pool_empty()
        before = self.server.resident_bytes()
        storm(COUNT)
        self.assert_pool_empty()
        grown = self.server.resident_bytes() - before
        print(f"{COUNT} aborts, resident memory grew by {grown / 1e6:.1f} MB")
        self.assertLess(grown, 48e6)
        status, _, text = self.server.fetch("/v1/completions", {"prompt": "Hello", "max_tokens": 4})
        self.assertEqual(status, 200, text)

    def test_rest(self):
        self.check(lambda count: in_threads(count, self.rest))

    def test_grpc(self):
        pb = harness.messages()
        with grpc.insecure_channel(self.server.grpc_address) as channel:
            stub = harness.stubs().InferenceStub(channel)
            self.check(lambda count: in_threads(
                count, lambda rng: self.grpc_call(stub, pb, rng)))


if __name__ == "__main__":
    unittest.main()
