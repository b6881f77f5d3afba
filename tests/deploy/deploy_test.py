"""What is shipped for containers and Kubernetes: well-formed, valid, and about metrics that exist."""

import functools
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
OVERLAYS = ("cpu", "gpu", "gateway")
ALERTS = ROOT / "docker/prometheus/alerts.yml"
# Kinds of Kubernetes itself; the gateway's kinds are custom resources without a published schema here.
CUSTOM_KINDS = {"InferencePool", "HTTPRoute"}


def run(*command):
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)


@functools.lru_cache
def declared_metrics():
    """Name to type, from the generated page (which a test of its own keeps true)."""
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^\| `([a-z0-9_:]+)` \| (\w+) \|", page, re.MULTILINE))
    assert len(found) > 30, "docs/metrics.md was not understood"
    return found


def metrics_in(query):
    """Names that look like ours in a PromQL expression."""
    return set(re.findall(r"\b(?:longstride:|vllm:|process_)[a-z0-9_]+", query))


def is_declared(name):
    if name in declared_metrics():
        return declared_metrics()[name] != "histogram"
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return declared_metrics().get(base) == "histogram"


def dashboard():
    return json.loads((ROOT / "docker/grafana/dashboards/longstride.json").read_text("utf-8"))


def dashboard_queries():
    return [(panel["title"], target["expr"]) for panel in dashboard()["panels"]
            for target in panel.get("targets", [])]


def alert_rules():
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


@functools.lru_cache
def rendered(overlay):
    """The overlay's objects, or a skip where no kubectl is installed."""
    if shutil.which("kubectl") is None:
        raise unittest.SkipTest("kubectl is not installed")
    result = subprocess.run(["kubectl", "kustomize", str(ROOT / "deploy/k8s/overlays" / overlay)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise AssertionError(result.stderr)
    return [item for item in yaml.safe_load_all(result.stdout) if item]


def find(overlay, kind, name="longstride"):
    return next(item for item in rendered(overlay)
                if item["kind"] == kind and item["metadata"]["name"] == name)


def pod_spec(overlay):
    return find(overlay, "Deployment")["spec"]["template"]["spec"]


class MetricNamesTest(unittest.TestCase):
    def test_every_panel_queries_declared_metrics(self):
        queries = dashboard_queries()
        self.assertGreater(len(queries), 20)
        for title, query in queries:
            with self.subTest(panel=title):
                self.assertTrue(metrics_in(query), query)
                self.assertEqual([n for n in metrics_in(query) if not is_declared(n)], [])

    def test_every_alert_queries_declared_metrics(self):
        for rule in alert_rules():
            with self.subTest(alert=rule["alert"]):
                self.assertEqual([n for n in metrics_in(rule["expr"]) if not is_declared(n)], [])

    def test_the_endpoint_picker_reads_declared_metrics(self):
        config = yaml.safe_load((ROOT / "deploy/k8s/overlays/gateway/epp-config.yaml").read_text())
        text = config["data"]["epp-config.yaml"]
        self.assertEqual(len(metrics_in(text)), 4)
        self.assertEqual([n for n in metrics_in(text) if not is_declared(n)], [])
        page = (ROOT / "docs/metrics.md").read_text("utf-8")
        labels = re.search(r"`longstride:cache_config_info` \| gauge \| ([^|]*)\|", page).group(1)
        for label in ("block_size", "num_gpu_blocks"):
            self.assertIn(f"`{label}`", labels)
            self.assertIn(label, text)

    def test_an_unknown_metric_would_be_noticed(self):
        self.assertFalse(is_declared("longstride:no_such_metric"))
        self.assertFalse(is_declared("longstride:time_to_first_token_seconds"))  # needs a suffix
        self.assertFalse(is_declared("longstride:steps_total_bucket"))
        self.assertTrue(is_declared("longstride:time_to_first_token_seconds_bucket"))

    def test_the_dashboard_is_what_its_script_writes(self):
        path = ROOT / "scripts/make_dashboard.py"
        spec = importlib.util.spec_from_file_location("make_dashboard", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.assertEqual(module.OUTPUT.read_text("utf-8"), module.text())


class FilesTest(unittest.TestCase):
    def test_yaml_is_well_formed(self):
        if shutil.which("yamllint") is None:
            self.skipTest("yamllint is not installed")
        result = run("yamllint", "--strict", "-c", "tests/deploy/yamllint.yaml", "deploy", "docker")
        self.assertEqual(result.returncode, 0, result.stdout)

    def test_prometheus_accepts_configuration_and_rules(self):
        if shutil.which("promtool") is None:
            self.skipTest("promtool is not installed")
        result = run("promtool", "check", "config", "docker/prometheus/prometheus.yml")
        self.assertEqual(result.returncode, 0, result.stdout)
        result = run("promtool", "test", "rules", "tests/deploy/alerts_test.yml")
        self.assertEqual(result.returncode, 0, result.stdout)

    def test_compose_publishes_on_loopback_only(self):
        services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text("utf-8"))["services"]
        for name, service in services.items():
            for port in service["ports"]:
                self.assertTrue(port.startswith("127.0.0.1:"), f"{name}: {port}")
        self.assertTrue(services["longstride"]["read_only"])

    def test_compose_mounts_what_is_there(self):
        services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text("utf-8"))["services"]
        for service in services.values():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("./"):
                    self.assertTrue((ROOT / "docker" / source).exists(), source)

    def test_the_image_runs_as_a_number_and_never_as_root(self):
        text = (ROOT / "Dockerfile").read_text("utf-8")
        users = re.findall(r"^USER (.*)$", text, re.MULTILINE)
        self.assertEqual(users, ["65532:65532"])
        self.assertIn("LONGSTRIDE_HOST=0.0.0.0", text)
        self.assertNotIn("LONGSTRIDE_INSECURE=true\n", text)

    def test_the_image_copies_scripts_that_exist(self):
        text = (ROOT / "Dockerfile").read_text("utf-8")
        for script in re.findall(r"scripts/[a-z_]+\.sh", text):
            self.assertTrue(os.access(ROOT / script, os.X_OK), script)


class OverlaysTest(unittest.TestCase):
    def test_core_kinds_match_their_schemas(self):
        try:
            import kubernetes_validate
        except ImportError:
            self.skipTest("kubernetes-validate is not installed")
        for overlay in OVERLAYS:
            checked = 0
            for item in rendered(overlay):
                if item["kind"] in CUSTOM_KINDS:
                    continue
                kubernetes_validate.validate(item, "1.30", strict=True)
                checked += 1
            self.assertGreaterEqual(checked, 8, overlay)

    def test_the_schemas_notice_a_wrong_field(self):
        try:
            import kubernetes_validate
        except ImportError:
            self.skipTest("kubernetes-validate is not installed")
        deployment = json.loads(json.dumps(find("cpu", "Deployment")))
        deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(deployment, "1.30", strict=True)

    def test_objects_of_a_kind_have_names_of_their_own(self):
        for overlay in OVERLAYS:
            names = [(item["kind"], item["metadata"]["name"]) for item in rendered(overlay)]
            self.assertEqual(len(names), len(set(names)))

    def test_pods_are_locked_down(self):
        for overlay in OVERLAYS:
            spec = pod_spec(overlay)
            container = spec["containers"][0]
            self.assertTrue(spec["securityContext"]["runAsNonRoot"])
            self.assertEqual(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault")
            self.assertFalse(spec["automountServiceAccountToken"])
            self.assertFalse(spec["enableServiceLinks"])
            context = container["securityContext"]
            self.assertTrue(context["readOnlyRootFilesystem"])
            self.assertFalse(context["allowPrivilegeEscalation"])
            self.assertEqual(context["capabilities"]["drop"], ["ALL"])
            for mount in container["volumeMounts"]:
                self.assertTrue(mount["readOnly"], mount["name"])
            self.assertIn("memory", container["resources"]["limits"])

    def test_every_mount_has_its_volume(self):
        for overlay in OVERLAYS:
            spec = pod_spec(overlay)
            volumes = {volume["name"] for volume in spec["volumes"]}
            mounts = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
            self.assertEqual(volumes, mounts, overlay)

    def test_probes_and_grace_times_fit_together(self):
        for overlay in OVERLAYS:
            spec = pod_spec(overlay)
            container = spec["containers"][0]
            self.assertEqual(container["startupProbe"]["httpGet"]["path"], "/health/ready")
            self.assertEqual(container["readinessProbe"]["httpGet"]["path"], "/health/ready")
            self.assertEqual(container["livenessProbe"]["httpGet"]["path"], "/health/live")
            pre_stop = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
            config = find(overlay, "ConfigMap", "longstride-config")["data"]["longstride.json"]
            grace = int(re.search(r'"grace": "(\d+)s"', config).group(1))
            # The server itself flushes for up to 5 s after the grace time.
            self.assertGreaterEqual(spec["terminationGracePeriodSeconds"], pre_stop + grace + 10)

    def test_services_and_budget_select_the_pods(self):
        for overlay in OVERLAYS:
            labels = find(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
            selectors = [find(overlay, "Service")["spec"]["selector"],
                         find(overlay, "Service", "longstride-grpc")["spec"]["selector"],
                         find(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
                         find(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
                         find(overlay, "Deployment")["spec"]["selector"]["matchLabels"]]
            if overlay == "gateway":
                selectors.append(find(overlay, "InferencePool")["spec"]["selector"]["matchLabels"])
            for selector in selectors:
                self.assertLessEqual(selector.items(), labels.items())
            self.assertEqual(find(overlay, "Service", "longstride-grpc")["spec"]["clusterIP"], "None")

    def test_only_the_guarded_overlay_goes_without_keys(self):
        for overlay in OVERLAYS:
            config = find(overlay, "ConfigMap", "longstride-config")["data"]["longstride.json"]
            if overlay == "gateway":
                self.assertIn('"insecure": true', config)
                sources = find(overlay, "NetworkPolicy")["spec"]["ingress"][0]["from"]
                self.assertNotIn({"podSelector": {}}, sources)
            else:
                self.assertIn('"api_keys"', config)
                self.assertNotIn("insecure", config)


if __name__ == "__main__":
    unittest.main()
