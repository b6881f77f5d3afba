"""Live fidelity: a bad plan loaded on purpose moves the metrics and fires the alert; the checkpoint's
own plan does neither."""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import harness

ALERTS = harness.ROOT / "docker/prometheus/alerts.yml"
MASS = "longstride:shadow_local_captured_mass"
ERROR = "longstride:shadow_local_output_error"
# Every layer may read one page behind the newest; all pages are kept.
BAD_PLAN = {"name": "bad", "default": {"pattern": "quest", "budget_tokens": 64, "sink_pages": 0,
                                       "recent_pages": 1}}
WINDOW_PLAN = {"name": "window", "default": {"pattern": "window", "window": 128}}


class LiveFidelity(unittest.TestCase):
    def setUp(self):
        if not harness.binary().exists() or not harness.model().exists():
            self.skipTest("the server is not built or the model is missing")

    def serve(self, *flags, plan=None):
        """All of /metrics after 40 generated tokens behind a long prompt, and the server's log."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            if plan is not None:
                json.dump(plan, file)
                file.flush()
                flags += ("--sparsity-plan", file.name)
            server = harness.Server("--max-context", "2048", *flags)
            try:
                prompt = "The council met in the hall, and the miller spoke of the flood. " * 60
                status, _, text = server.fetch("/v1/completions", {
                    "prompt": prompt, "max_tokens": 40, "temperature": 0, "ignore_eos": True})
                self.assertEqual(status, 200, text)
                text = server.fetch("/metrics")[2]
                # Patterns' descriptions hold spaces, which harness.metrics() does not read.
                metrics = {key: float(value) for key, value in
                           re.findall(r"^([a-z][a-z_:]*(?:\{.*\})?) (\S+)$", text, re.MULTILINE)}
                return metrics, text, server.output()
            finally:
                server.stop()

    def mean(self, metrics, name):
        def total(suffix):
            return sum(v for k, v in metrics.items() if k.startswith(name + suffix + "{"))
        self.assertGreater(total("_count"), 0)
        return total("_sum") / total("_count")

    def test_off_by_default(self):
        metrics, text, _ = self.serve()
        self.assertNotIn(MASS, text)
        self.assertNotIn("longstride:shadow_local_info{", text)
        self.assertEqual(metrics["longstride:shadow_local_steps_total"], 0)

    def test_own_plan_has_all_mass_and_no_error(self):
        metrics, text, _ = self.serve("--fidelity-sample-rate", "1")
        self.assertGreaterEqual(metrics["longstride:shadow_local_steps_total"], 38)
        self.assertGreater(metrics["longstride:shadow_local_seconds_total"], 0)
        self.assertIn('longstride:shadow_local_info{state="all"', text)
        self.assertGreater(self.mean(metrics, MASS), 0.9999)
        self.assertLess(self.mean(metrics, ERROR), 1e-3)
        self.assertFalse(self.fires(metrics))

    def test_a_bad_plan_moves_the_metrics_and_fires_the_alert(self):
        metrics, text, _ = self.serve("--fidelity-sample-rate", "0.5", plan=BAD_PLAN)
        steps = metrics["longstride:shadow_local_steps_total"]
        self.assertTrue(18 <= steps <= 20, steps)  # every second step, no matter the luck
        self.assertIn('longstride:shadow_local_info{state="all"', text)
        self.assertLess(self.mean(metrics, MASS), 0.8)
        self.assertGreater(self.mean(metrics, ERROR), 0.1)
        layers = [v for k, v in metrics.items()
                  if k.startswith("longstride:shadow_local_layer_captured_mass{")]
        self.assertLess(min(layers), 0.8)
        self.assertTrue(self.fires(metrics))

    def test_absent_with_a_reason_where_pages_are_freed(self):
        metrics, text, log = self.serve("--fidelity-sample-rate", "1", plan=WINDOW_PLAN)
        self.assertEqual(metrics["longstride:shadow_local_steps_total"], 0)
        self.assertIn('longstride:shadow_local_info{state="none",reason="the plan frees pages that '
                      'the baseline would read"', text)
        self.assertNotIn(MASS, text)
        self.assertIn("the plan frees pages", log)

    def fires(self, metrics):
        """Whether the alert fires on a server that goes on for half an hour as it did here."""
        if shutil.which("promtool") is None:
            self.skipTest("promtool is not installed")
        series = [
            # Nothing before the first minute: then as much again every minute.
            f"    - series: '{key[:-1]},job=\"longstride\",instance=\"one\"}}'\n"
            f"      values: '0+{value}x40'\n"
            for key, value in metrics.items()
            if key.startswith((MASS + "_sum{", MASS + "_count{"))]
        self.assertTrue(series)
        with tempfile.TemporaryDirectory() as folder:
            test = pathlib.Path(folder) / "test.yml"
            test.write_text(
                f"rule_files: ['{ALERTS}']\nevaluation_interval: 1m\ntests:\n- interval: 1m\n"
                "  input_series:\n" + "".join(series) +
                "  alert_rule_test:\n  - eval_time: 40m\n    alertname: LongstrideFidelityLow\n"
                "    exp_alerts: []\n", "utf-8")
            done = subprocess.run(["promtool", "test", "rules", test], capture_output=True,
                                  text=True, timeout=60)
        output = done.stdout + done.stderr
        # Without an alert the expectation of none holds; any other failure is one of this test.
        if done.returncode != 0:
            self.assertIn('alertname="LongstrideFidelityLow"', output)
        return done.returncode != 0


if __name__ == "__main__":
    unittest.main()
