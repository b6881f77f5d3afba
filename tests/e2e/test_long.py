"""A context of 30,000 tokens on a model with windowed layers: what they hold, what is shared.

LONGSTRIDE_TEST_MODELS   folder of the checkpoints (default: models)
"""

import json
import os
import pathlib
import random
import threading
import unittest

import harness

MODELS = pathlib.Path(os.environ.get("LONGSTRIDE_TEST_MODELS", harness.ROOT / "models"))
MODEL = MODELS / "gemma-3-270m-q4_k_m.gguf"
PAGE = 64
WINDOW = 512
CHUNK = 1024
LONG = 30000
SHARED = 20000


class LongContext(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not harness.binary().exists() or not MODEL.exists():
            raise unittest.SkipTest("the server is not built or the model is missing")
        before = os.environ.get("LONGSTRIDE_TEST_MODEL")
        os.environ["LONGSTRIDE_TEST_MODEL"] = str(MODEL)
        try:
            cls.server = harness.Server("--scheduler-max-step-tokens", str(CHUNK))
        finally:
            if before is None:
                del os.environ["LONGSTRIDE_TEST_MODEL"]
            else:
                os.environ["LONGSTRIDE_TEST_MODEL"] = before

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def complete(self, ids):
        status, _, text = self.server.fetch(
            "/v1/completions", {"prompt": ids, "max_tokens": 4, "temperature": 0}, timeout=900)
        self.assertEqual(status, 200, text)
        return json.loads(text)["usage"]

    def used_pages(self):
        """Pages held by running requests, by cache group."""
        pages = {}
        for series, value in self.server.metrics().items():
            if series.startswith("longstride:kv_pages{") and 'state="used"' in series:
                pages[series.split('group="')[1].split('"')[0]] = value
        return pages

    def test_windows_hold_a_window_and_shared_prefixes_are_reused(self):
        rng = random.Random(random.SystemRandom().randrange(2**32))
        prompt = [rng.randrange(1000, 200000) for _ in range(LONG)]
        peak = {}
        done = threading.Event()

        def watch():
            while not done.wait(0.05):
                for group, pages in self.used_pages().items():
                    peak[group] = max(peak.get(group, 0), pages)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            usage = self.complete(prompt)
        finally:
            done.set()
            watcher.join()
        self.assertEqual(usage["prompt_tokens"], LONG)
        print("pages held at the most:", peak)
        full = max(peak, key=peak.get)
        # The watcher looks now and then: it may miss the last chunk.
        self.assertGreaterEqual(peak[full], (LONG - CHUNK) // PAGE)
        windowed = {group: pages for group, pages in peak.items() if group != full}
        self.assertTrue(windowed)
        for group, pages in windowed.items():
            self.assertLessEqual(pages, (WINDOW + CHUNK) // PAGE + 1, group)

        other = prompt[:SHARED] + [rng.randrange(1000, 200000) for _ in range(2000)]
        usage = self.complete(other)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        print(f"{cached} of {SHARED} shared tokens reused")
        self.assertGreaterEqual(cached, 18000)
        self.assertLessEqual(cached, SHARED)


if __name__ == "__main__":
    unittest.main()
