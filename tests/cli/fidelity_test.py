"""`longstride fidelity` on a tiny random checkpoint: the report, the search, and its messages."""

import hashlib
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("LONGSTRIDE_TEST_BINARY", str(ROOT / "build/cpu/server/longstride"))
SEED = int(os.environ.get("LONGSTRIDE_TEST_SEED", random.randrange(1 << 30)))
FAILED, USAGE, MODEL = 1, 2, 3
QUICK = ("--window-tokens", "256", "--max-tokens", "1024", "--threads", "1", "--mass-rows", "4")


def text(words, seed):
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choice("abcdefgh") for _ in range(rng.randrange(2, 7)))
                  for _ in range(60)]
    return " ".join(rng.choice(vocabulary) for _ in range(words)) + "\n"


class FidelityTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print(f"LONGSTRIDE_TEST_SEED={SEED}", file=sys.stderr)
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.model = cls.folder / "tiny"
        subprocess.run([sys.executable, ROOT / "bench/cuda/make_checkpoint.py", cls.model, "tiny"],
                       check=True, capture_output=True)
        (cls.folder / "a.txt").write_text(text(400, SEED))
        (cls.folder / "b.txt").write_text(text(400, SEED + 1))
        (cls.folder / "short.txt").write_text("too short")
        (cls.folder / "empty.txt").write_text("")
        cls.plan("narrow", 8)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    @classmethod
    def plan(cls, name, window, layers="0-1"):
        path = cls.folder / f"{name}.json"
        path.write_text(json.dumps({"name": name, "layers": [
            {"layers": layers, "pattern": "window", "window": window, "sink_tokens": 2}]}))
        return path

    def run_it(self, *args, model=None, data=("a.txt", "b.txt")):
        command = [BINARY, "fidelity", model or self.model, *QUICK, *args]
        if data:
            command += ["--data", *(self.folder / name for name in data)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LONGSTRIDE_")}
        return subprocess.run([str(part) for part in command], capture_output=True, text=True,
                              timeout=300, env=environment, check=False)

    def report(self, *args, **kwargs):
        path = self.folder / "report.json"
        result = self.run_it("--json", path, *args, **kwargs)
        self.assertEqual(result.returncode, 0, result.stderr + result.stdout)
        report = json.loads(path.read_text())
        self.check_schema(report)
        return report, result

    def check_schema(self, report):
        try:
            import jsonschema
        except ImportError:
            self.skipTest("jsonschema is not installed")
        schema = json.loads((ROOT / "docs/fidelity_report.schema.json").read_text())
        jsonschema.Draft7Validator.check_schema(schema)
        jsonschema.Draft7Validator(schema).validate(report)

    def refused(self, status, *parts, args=("--plan", "dense"), **kwargs):
        result = self.run_it(*args, **kwargs)
        self.assertEqual(result.returncode, status, result.stderr + result.stdout)
        last = result.stderr.splitlines()[-1]
        self.assertTrue(last.startswith("longstride: "), result.stderr)
        for part in parts:
            self.assertIn(part, last)

    def test_the_native_plan_differs_in_nothing(self):
        report, result = self.report("--plan", "native", "--no-tasks")
        self.assertEqual(report["divergence"]["kl"]["value"], 0)
        self.assertEqual(report["divergence"]["kl_max"], 0)
        self.assertEqual(report["divergence"]["same_top"]["value"], 1)
        self.assertEqual(report["divergence"]["perplexity_ratio"]["value"], 1)
        self.assertEqual(report["noise_floor"]["divergence"]["kl_max"], 0)
        self.assertEqual(report["baseline"]["digest"], report["plan"]["digest"])
        self.assertIn("nothing differs", report["notes"][0])
        self.assertIn("not distinguishable", result.stdout)
        self.assertIsNone(report["search"])

    def test_a_narrow_window_shows_in_every_figure(self):
        page = self.folder / "page.html"
        report, result = self.report("--plan", self.folder / "narrow.json", "--html", page,
                                     "--task-lengths", "1024", "--task-contexts", "2")
        identity = report["identity"]
        self.assertEqual(identity["windows"], 4)
        self.assertEqual(identity["tokens"], 1024)
        for file in identity["data"]:
            contents = (self.folder / file["name"]).read_bytes()
            self.assertEqual(file["sha256"], hashlib.sha256(contents).hexdigest())
            self.assertEqual(file["tokens"], 512)
        self.assertNotIn(str(self.folder), json.dumps(report))  # names, not places

        divergence = report["divergence"]
        self.assertEqual(divergence["positions"], 4 * 255)
        self.assertGreater(divergence["kl"]["value"], 0)
        low, high = divergence["kl"]["interval"]
        self.assertLessEqual(low, divergence["kl"]["value"])
        self.assertGreaterEqual(high, divergence["kl"]["value"])
        self.assertEqual(report["noise_floor"]["divergence"]["kl_max"], 0)
        self.assertEqual([b["begin"] for b in report["by_position"]], [0, 64, 128])
        self.assertEqual(sum(b["divergence"]["positions"] for b in report["by_position"]), 4 * 255)
        yardsticks = {y["name"]: y for y in report["yardsticks"]}
        self.assertGreater(yardsticks["8-bit KV cache"]["divergence"]["kl"]["value"], 0)
        self.assertIn("--scale-model", yardsticks["other weights"]["reason"])

        # A query at i sees min(i + 1, 8) keys, and the two sinks where they lie outside.
        seen = sum(min(i + 1, 8) + min(2, max(0, i - 7)) for i in range(256))
        for layer in report["layers"]:
            self.assertTrue(layer["changed"])
            self.assertAlmostEqual(layer["asked_density"], seen / (256 * 257 / 2), places=6)
            self.assertAlmostEqual(layer["achieved_density"], layer["asked_density"], places=6)
            self.assertAlmostEqual(layer["baseline_density"], 1, places=6)
            self.assertEqual(len(layer["captured_mass"]), 4)
            self.assertTrue(all(0 < m < 1 for m in layer["captured_mass"]))
        # Four pages a window, the first of which holds the sinks; a long context keeps few of many.
        self.assertEqual(report["baseline"]["kv_bytes_measured"], 4 * 2 * 2 * 2 * 64 * 64 * 2)
        self.assertLessEqual(report["plan"]["kv_bytes_measured"],
                             report["baseline"]["kv_bytes_measured"])
        self.assertLess(report["plan"]["kv_bytes_at_max_context"],
                        report["baseline"]["kv_bytes_at_max_context"] / 100)
        for plan in (report["baseline"], report["plan"]):
            self.assertGreater(plan["decode_tokens_per_second"]["least"], 0)

        tasks = report["tasks"]
        self.assertEqual({t["task"] for t in tasks["results"]},
                         {"single_key", "multi_key", "multi_value", "variable_tracking",
                          "counting", "common_words"})
        for task in tasks["results"]:
            self.assertGreater(task["questions"], 0)
        self.assertEqual(tasks["worst"]["tokens"], 1024)
        self.assertIn("worst: " + tasks["worst"]["task"], result.stdout)

        html = page.read_text()
        self.assertGreaterEqual(html.count("<svg"), 4)
        self.assertIn(report["verdict"].replace("'", "&#39;"), html)
        self.assertIsNone(re.search(r"(src|href)=|https?://|@import|<script", html))

    def test_seeds_repeat(self):
        one, _ = self.report("--plan", self.folder / "narrow.json", "--no-tasks", "--seed", "5")
        two, _ = self.report("--plan", self.folder / "narrow.json", "--no-tasks", "--seed", "5")
        for part in ("divergence", "by_position", "layers", "captured_mass"):
            self.assertEqual(one[part], two[part])

    def test_another_checkpoint_gives_a_scale(self):
        report, _ = self.report("--plan", self.folder / "narrow.json", "--no-tasks",
                                "--scale-model", self.model)
        yardstick = report["yardsticks"][1]
        self.assertEqual(yardstick["divergence"]["kl"]["value"], 0)  # it is the same one

    def test_a_plan_is_found_written_and_loaded(self):
        plan = self.folder / "found.json"
        report, result = self.report("--target", "kl<=1000", "--write-plan", plan, "--no-tasks")
        search = report["search"]
        rungs = search["rungs"]
        self.assertEqual(search["search_windows"] + search["check_windows"], 4)
        self.assertEqual(report["identity"]["windows"], search["check_windows"])
        self.assertEqual([r["keys_share"] for r in rungs], sorted(r["keys_share"] for r in rungs))
        chosen = rungs[search["chosen"]]
        self.assertTrue(chosen["holds_checked"])
        self.assertEqual(chosen["keys_share"], rungs[0]["keys_share"])  # anything holds
        self.assertEqual(chosen["digest"], report["plan"]["digest"])
        self.assertEqual(chosen["checked"]["kl"], report["divergence"]["kl"])
        written = json.loads(plan.read_text())
        digest = hashlib.sha256((self.folder / "report.json").read_bytes()).hexdigest()
        self.assertEqual(written["fidelity_report"], "sha256:" + digest)
        inspected = subprocess.run([BINARY, "inspect", self.model, "--sparsity-plan", plan,
                                    "--json"], capture_output=True, text=True, check=True)
        inspected = json.loads(inspected.stdout)
        self.assertEqual(inspected["plan_digest"], chosen["digest"])
        self.assertEqual(inspected["fidelity_report"], written["fidelity_report"])

    def test_generated_tokens_are_measured_where_they_differ(self):
        plan = self.folder / "quest.json"
        plan.write_text(json.dumps({"name": "q", "default": {"pattern": "quest",
                                                             "budget_tokens": 64}}))
        prompt, _ = self.report("--plan", plan, "--no-tasks")
        self.assertEqual(prompt["identity"]["text_as"], "prompt")
        self.assertEqual(prompt["divergence"]["kl_max"], 0)  # prompts are computed in full
        self.assertTrue(any("--generated" in note for note in prompt["notes"]))
        self.assertIn("depends on the query", prompt["captured_mass"]["reason"])
        generated, _ = self.report("--plan", plan, "--no-tasks", "--generated")
        self.assertEqual(generated["identity"]["text_as"], "generated")
        self.assertGreater(generated["divergence"]["kl"]["value"], 0)
        self.assertEqual(generated["by_position"][0]["divergence"]["kl_max"], 0)  # one page
        for layer in generated["layers"]:
            self.assertLess(layer["asked_density"], 0.7)
            self.assertAlmostEqual(layer["achieved_density"], layer["asked_density"], delta=0.02)
        found, _ = self.report("--target", "kl<=1000", "--no-tasks", "--generated")
        self.assertEqual(found["identity"]["text_as"], "generated")
        self.assertTrue(any(rung["description"].startswith("quest") and rung["searched"]["kl"]["value"] > 0
                            for rung in found["search"]["rungs"]))

    def calibrate(self, *args, data=("a.txt", "b.txt")):
        command = [BINARY, "calibrate-heads", self.model, "--threads", "1", *args]
        if data:
            command += ["--data", *(self.folder / name for name in data)]
        return subprocess.run([str(part) for part in command], capture_output=True, text=True,
                              timeout=300, check=False)

    def test_heads_are_calibrated_and_the_table_is_served(self):
        table = self.folder / "heads.json"
        (self.folder / "long.txt").write_text(text(2500, SEED + 2))
        quick = ("--texts", "1", "--text-tokens", "1500", "--window", "16", "--sink-tokens", "4",
                 "--out", table)
        result = self.calibrate(*quick, data=("long.txt",))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("4 KV heads", result.stdout)
        written = json.loads(table.read_text())
        self.assertEqual(written["patterns"]["streaming"],
                         {"pattern": "window", "window": 16, "sink_tokens": 4})
        self.assertNotIn(str(self.folder), table.read_text())
        scores = written["scores"]
        self.assertEqual([len(row) for row in scores], [2, 2])
        self.assertTrue(all(score > 0 for row in scores for score in row))

        plan = self.folder / "duo.json"
        rule = {"layers": "full", "head_table": {"file": "heads.json"}, "streaming_share": 0.75}
        plan.write_text(json.dumps({"name": "duo", "layers": [rule]}))
        inspected = self.inspect("--plan", plan, "--json", "--context", "2000")
        self.assertEqual(inspected.returncode, 0, inspected.stderr)
        report = json.loads(inspected.stdout)
        # One of four heads keeps all of its pages.
        full = [group for group in report["groups"] if group["name"].startswith("full")]
        self.assertEqual([group["pages_per_sequence"] for group in full], [-(-2000 // 64)])
        page_bytes = sum(group["page_bytes"] for group in report["groups"])
        self.assertEqual(sum(group["page_bytes"] * (3 if group in full else 1)
                             for group in report["groups"]), page_bytes * 1.5)
        report, _ = self.report("--plan", plan, "--no-tasks")
        self.assertGreater(report["divergence"]["kl"]["value"], 0)

        written["model"] = "0" * 32
        table.write_text(json.dumps(written))
        self.refused(USAGE, "layers[0].head_table", "calibrate-heads", args=("--plan", plan))

        for parts, args, data in (
                ("--out", ("--window", "8"), ("a.txt",)),
                ("--data", quick, ()),
                ("lies inside", ("--out", table, "--text-tokens", "128"), ("a.txt",)),
                ("leave out --sparsity-plan", (*quick, "--sparsity-profile", "dense"), ("a.txt",)),
                ("too short", quick, ("short.txt",))):
            result = self.calibrate(*args, data=data)
            self.assertEqual(result.returncode, USAGE, result.stderr)
            self.assertIn(parts, result.stderr.splitlines()[-1])

    def inspect(self, *args):
        command = [BINARY, "inspect", self.model, "--threads", "1", *args]
        return subprocess.run([str(part) for part in command], capture_output=True, text=True,
                              timeout=300, check=False)

    def test_inspect_draws_and_predicts_a_plan(self):
        picture = self.folder / "plan.svg"
        result = self.inspect("--plan", self.folder / "narrow.json", "--context", "2000", "--svg",
                              picture, "--calibrate", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual(report["plan"], "narrow")
        # 2 layers of 4 heads of 64; at the end a query sees 8 keys and 2 sinks.
        self.assertEqual(report["flops"]["decode_attention"], 4 * 2 * 4 * 64 * 10)
        self.assertEqual(report["flops"]["decode_dense_attention"], 4 * 2 * 4 * 64 * 2000)
        linear = 2 * (256 * 256 * 2 + 2 * 256 * 128 + 3 * 256 * 512) + 512 * 256
        self.assertEqual(report["flops"]["decode_linear"], 2 * linear)
        group = report["groups"][0]
        self.assertEqual(group["pages_written"], -(-2000 // 64))
        self.assertLess(group["pages_per_sequence"], group["pages_written"])
        prediction = report["prediction"]
        self.assertGreater(prediction["time_to_first_token_s"], 0)
        self.assertGreater(prediction["decode_tokens_per_second"], 0)
        root = xml.etree.ElementTree.parse(picture).getroot()
        self.assertTrue(root.tag.endswith("svg"))
        drawn = picture.read_text()
        self.assertEqual(drawn.count("class='frame'"), 1)  # all heads read alike
        self.assertIn("8 heads", drawn)
        plain = self.inspect("--plan", "dense", "--json")
        self.assertIsNone(json.loads(plain.stdout)["prediction"])
        self.assertIn("first token", self.inspect("--plan", "dense", "--calibrate").stdout)

    def test_inspect_names_mistakes(self):
        twice = self.inspect("--plan", "dense", "--sparsity-profile", "dense")
        self.assertEqual(twice.returncode, USAGE)
        self.assertIn("given twice", twice.stderr)
        self.assertEqual(self.inspect("--plan", self.folder / "none.json").returncode, USAGE)
        unwritable = self.inspect("--plan", "dense", "--svg", self.folder / "no/such.svg")
        self.assertEqual(unwritable.returncode, USAGE)
        self.assertIn("--svg", unwritable.stderr)

    def test_published_reports_match_their_plans(self):
        folder = ROOT / "docs/fidelity"
        plans = sorted(folder.glob("*-plan.json"))
        self.assertGreater(len(plans), 0)
        for plan in plans:
            contents = (folder / plan.name.replace("-plan", "")).read_bytes()
            report = json.loads(contents)
            self.check_schema(report)
            digest = hashlib.sha256(contents).hexdigest()
            written = json.loads(plan.read_text())
            self.assertEqual(written.pop("fidelity_report"), "sha256:" + digest, plan.name)
            self.assertEqual(written, json.loads(report["plan"]["text"]))
            self.assertIn("<svg", plan.with_name(plan.name.replace("-plan.json", ".html")).read_text())

    def test_a_target_out_of_reach_is_said(self):
        self.refused(FAILED, "none of", "Loosen the target",
                     args=("--target", "kl<=0,top1>=1", "--no-tasks"))

    def test_mistakes_are_one_sentence(self):
        narrow = self.folder / "narrow.json"
        self.refused(USAGE, "--data FILE", data=())
        self.refused(USAGE, "cannot be read", data=("missing.txt",))
        self.refused(USAGE, "is empty", data=("empty.txt",))
        self.refused(USAGE, "too short", "--window-tokens", data=("short.txt",))
        self.refused(USAGE, "--plan", "--target", args=())
        self.refused(USAGE, "either --plan", args=("--plan", "dense", "--target", "kl<=1"))
        self.refused(USAGE, "neither a file", "Did you mean 'dense'?", args=("--plan", "dens"))
        self.refused(USAGE, "names layer 9", "0 to 1",
                     args=("--plan", self.plan("beyond", 8, "9")))
        for target in ("kl", "speed<=1", "kl>=1"):
            self.refused(USAGE, "--target", "kl<=NATS", args=("--target", target))
        self.refused(USAGE, "--write-plan", args=("--plan", narrow, "--write-plan", "x.json"))
        self.refused(USAGE, "--json FILE",
                     args=("--target", "kl<=1", "--write-plan", self.folder / "x.json"))
        self.refused(USAGE, "instead of", args=("--plan", narrow, "--sparsity-profile", "dense"))
        self.refused(USAGE, "cannot be written",
                     args=("--plan", narrow, "--json", self.folder / "no/such/folder.json"))
        self.refused(USAGE, "--task-lengths", args=("--plan", narrow, "--task-lengths", "1,x"))
        self.refused(MODEL, args=("--plan", narrow), model=self.folder / "missing.gguf")


if __name__ == "__main__":
    if not os.path.exists(BINARY):
        print(f"skipped: {BINARY} is not built")
        sys.exit(77)
    unittest.main()
