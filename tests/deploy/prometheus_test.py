"""The dashboard's queries and the alert rules, asked of a real Prometheus that scraped the server."""

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
sys.path.insert(0, str(ROOT / "tests/deploy"))

import deploy_test  # noqa: E402
import harness  # noqa: E402

MODELS = pathlib.Path(os.environ.get("LONGSTRIDE_TEST_MODELS", ROOT / "models"))
MODEL = MODELS / "gemma-3-270m-q4_k_m.gguf"
# What only a fault or an overload would show; their queries must be valid, and may be empty.
MAY_BE_EMPTY = {"Refused, by reason"}


class Prometheus:
    def __init__(self, target):
        self.folder = tempfile.TemporaryDirectory(prefix="longstride-prometheus-")
        self.port = harness.free_port()
        config = pathlib.Path(self.folder.name) / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 500ms, evaluation_interval: 500ms}\n"
            f"rule_files: [{ROOT}/docker/prometheus/alerts.yml]\n"
            "scrape_configs:\n"
            f"  - {{job_name: longstride, static_configs: [{{targets: ['{target}']}}]}}\n")
        self.log = open(pathlib.Path(self.folder.name) / "log", "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--web.listen-address=127.0.0.1:{self.port}",
             f"--storage.tsdb.path={self.folder.name}/data"],
            stdout=self.log, stderr=subprocess.STDOUT)

    def get(self, path, **parameters):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as response:
            return json.load(response)

    def query(self, expression):
        answer = self.get("query", query=expression)
        if answer["status"] != "success":
            raise AssertionError(answer)
        return answer["data"]["result"]

    def wait_scrapes(self, count, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                result = self.query('count_over_time(longstride:ready[10m])')
                if result and float(result[0]["value"][1]) >= count:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        self.log.seek(0)
        raise AssertionError(f"Prometheus did not scrape the server {count} times:\n{self.log.read()}")

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()
        self.folder.cleanup()


class PrometheusTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if shutil.which("prometheus") is None:
            raise unittest.SkipTest("prometheus is not installed")
        if not harness.binary().exists() or not MODEL.exists():
            raise unittest.SkipTest("the server is not built or the model is missing")
        os.environ["LONGSTRIDE_TEST_MODEL"] = str(MODEL)
        cls.server = harness.Server("--max-context", "4096")
        cls.prometheus = Prometheus(f"127.0.0.1:{cls.server.http_port}")
        try:
            cls.prometheus.wait_scrapes(2)
            for _ in range(2):  # rates need a change between two scrapes
                cls.drive()
                time.sleep(1.5)
            cls.prometheus.wait_scrapes(6)
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.prometheus.stop()
        cls.server.stop()

    @classmethod
    def drive(cls):
        prompt = "The council of the village met in the hall. " * 80
        body = {"prompt": prompt, "max_tokens": 32, "ignore_eos": True, "stream": True}
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            for answer in pool.map(lambda _: cls.server.fetch("/v1/completions", body), range(3)):
                if answer[0] != 200:
                    raise AssertionError(answer)
        cls.server.fetch("/v1/nothing")
        import grpc
        pb = harness.messages()
        with grpc.insecure_channel(cls.server.grpc_address) as channel:
            stub = harness.stubs().InferenceStub(channel)
            request = pb.GenerateRequest(text=pb.TextPrompt(text="Hello"))
            request.stopping.max_tokens = 8
            list(stub.Generate(request))

    def test_every_panel_resolves(self):
        for title, query in deploy_test.dashboard_queries():
            with self.subTest(panel=title):
                query = query.replace("$instance", ".*").replace("$__rate_interval", "1m")
                result = self.prometheus.query(query)
                if title not in MAY_BE_EMPTY:
                    self.assertTrue(result, query)

    def test_the_dashboards_variable_has_values(self):
        values = self.prometheus.get("label/instance/values", **{"match[]": "longstride:build_info"})
        self.assertTrue(values["data"])

    def test_every_alert_evaluates_and_none_fires_on_a_healthy_server(self):
        groups = self.prometheus.get("rules")["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        self.assertEqual(len(rules), len(deploy_test.alert_rules()))
        for rule in rules:
            with self.subTest(alert=rule["name"]):
                self.assertEqual(rule["health"], "ok", rule.get("lastError"))
                self.assertNotEqual(rule["state"], "firing")

    def test_scrapes_are_small_and_quick(self):
        size = self.prometheus.query("scrape_samples_scraped")
        self.assertTrue(size)
        duration = float(self.prometheus.query("max(scrape_duration_seconds)")[0]["value"][1])
        self.assertLess(duration, 1)


if __name__ == "__main__":
    unittest.main()
