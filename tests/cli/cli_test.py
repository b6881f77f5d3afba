"""The program as its users meet it: help, messages, exit statuses, and each command."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("LONGSTRIDE_TEST_BINARY", str(ROOT / "build/cpu/server/longstride"))
MODELS = pathlib.Path(os.environ.get("LONGSTRIDE_TEST_MODELS", ROOT / "models"))
GEMMA = MODELS / "gemma-3-270m-q4_k_m.gguf"
SMOLLM = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"
USAGE, MODEL, ADDRESS, MEMORY = 2, 3, 4, 5
COMMANDS = ("serve", "inspect", "fidelity", "calibrate-heads", "generate", "tokenize", "bench",
            "config", "audit", "hash-key", "reference")


def run(*args, stdin="", env=None, timeout=240):
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("LONGSTRIDE_")}
    environment.update(env or {})
    return subprocess.run([BINARY, *map(str, args)], input=stdin, capture_output=True, text=True,
                          timeout=timeout, env=environment, check=False)


def needs(path):
    return unittest.skipUnless(path.exists(), f"{path.name} is missing; scripts/fetch_models.py "
                                              "gets it, LONGSTRIDE_TEST_MODELS names its folder")


class Case(unittest.TestCase):
    def assert_fails(self, result, status, *parts):
        """One line on stderr, for a person, with the parts in it."""
        self.assertEqual(result.returncode, status, result.stderr + result.stdout)
        self.assertTrue(result.stderr.startswith("longstride: "), result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        for part in parts:
            self.assertIn(part, result.stderr)


class CliTest(Case):
    def test_help_lists_every_command(self):
        result = run("--help")
        self.assertEqual(result.returncode, 0)
        for command in COMMANDS:
            self.assertRegex(result.stdout, rf"(?m)^  {command} ")
            help_text = run(command, "--help")
            self.assertEqual(help_text.returncode, 0)
            self.assertIn(f"usage: longstride {command}", help_text.stdout)

    def test_help_stays_within_its_columns(self):
        for line in run("serve", "--help").stdout.splitlines():
            self.assertLessEqual(len(line), 120, line)

    def test_version(self):
        self.assertRegex(run("--version").stdout, r"^longstride \d+\.\d+\.\d+ \(.+, gcc|clang")

    def test_no_command_is_a_mistake(self):
        result = run()
        self.assertEqual(result.returncode, USAGE)
        self.assertIn("usage:", result.stderr)

    def test_unknown_names_suggest_the_nearest(self):
        self.assert_fails(run("serv"), USAGE, "Did you mean 'serve'?")
        self.assert_fails(run("serve", "m", "--kv-dtyp", "q8"), USAGE, "Did you mean '--kv-dtype'?")
        self.assert_fails(run("config", env={"LONGSTRIDE_THREAD": "2"}), USAGE,
                          "Did you mean 'LONGSTRIDE_THREADS'?")
        self.assert_fails(run("serve", "m", "--sparsity-profile", "stride"), USAGE,
                          "Did you mean 'strided'?")

    def test_superfluous_arguments_are_refused(self):
        self.assert_fails(run("serve", "a", "b"), USAGE, "'b'")
        self.assert_fails(run("serve", "a", "--model", "b"), USAGE, "twice")

    def test_reachable_addresses_need_keys(self):
        self.assert_fails(run("serve", "m", "--host", "0.0.0.0"), USAGE, "API keys", "hash-key")

    def test_config_prints_values_with_their_sources(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write('{"kv": {"dtype": "q8"} /* half */}')
            file.flush()
            result = run("config", "--config", file.name, "--threads", 3,
                         env={"LONGSTRIDE_HTTP_PORT": "9000"})
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r'"dtype": "q8",?  // file')
        self.assertRegex(result.stdout, r'"threads": 3,?  // flag --threads')
        self.assertRegex(result.stdout, r'"port": 9000,?  // environment LONGSTRIDE_HTTP_PORT')

    def test_config_file_mistakes_are_named(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write('{"kv": {"dtype": "q8", "dtype": "f16"}}')
            file.flush()
            self.assert_fails(run("config", "--config", file.name), USAGE, "twice")
        self.assert_fails(run("config", "--config", "/nonexistent.json"), USAGE, "cannot be read")
        self.assert_fails(run("config", "--config", "/tmp"), USAGE)

    def test_reference_pages_are_current(self):
        for page, path in (("options", "configuration.md"), ("metrics", "metrics.md"),
                           ("schema", "configuration.schema.json")):
            result = run("reference", page)
            self.assertEqual(result.stdout, (ROOT / "docs" / path).read_text("utf-8"), page)

    def test_hash_key_makes_a_line_for_the_key_file(self):
        result = run("hash-key", "alice", stdin="0123456789abcdef0123\n")
        self.assertRegex(result.stdout, r"^alice:[0-9a-f]{64}\n$")
        self.assert_fails(run("hash-key", "alice", stdin="short\n"), USAGE, "16")
        self.assert_fails(run("hash-key", stdin="0123456789abcdef\n"), USAGE, "name")

    def test_bench_says_when_there_is_no_server(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.assert_fails(run("bench", "--url", url), ADDRESS, "Connection refused")
        self.assert_fails(run("bench", "--url", "ftp://x"), USAGE, "http://HOST:PORT")
        self.assert_fails(run("bench", "--rate", 1, "--concurrency", 1), USAGE, "exclude")


class SchemaTest(unittest.TestCase):
    """The published schema accepts and refuses what the program accepts and refuses."""

    ACCEPTED = ['{}', '{"threads": 4}', '{"kv": {"dtype": "q8", "memory": "512MiB"}}',
                '{"kv": {"memory": 1048576}}', '{"drain": {"grace": "1m30s"}}',
                '{"insecure": true, "host": "::"}', '{"kv": {"memory_fraction": 0.5}}']
    REFUSED = ['{"thread": 4}', '{"threads": "4"}', '{"threads": 1.5}', '{"threads": -1}',
               '{"kv": {"dtype": "f17"}}', '{"kv": {"memory_fraction": 2}}', '{"insecure": 1}',
               '{"drain": {"grace": 30}}', '{"drain": {"grace": "30"}}', '{"http": {"port": 70000}}',
               '{"kv": {"memory": "lots"}}', '[]', '{"kv.dtype": "q8"}']

    def test_agrees_with_the_program(self):
        try:
            import jsonschema
        except ImportError:
            self.skipTest("jsonschema is not installed")
        schema = json.loads(run("reference", "schema").stdout)
        jsonschema.Draft7Validator.check_schema(schema)
        validator = jsonschema.Draft7Validator(schema)
        for text in self.ACCEPTED + self.REFUSED:
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                file.write(text)
                file.flush()
                accepted = run("config", "--config", file.name).returncode == 0
            self.assertEqual(accepted, text in self.ACCEPTED, text)
            self.assertEqual(validator.is_valid(json.loads(text)), accepted, text)


class ModelFaultsTest(Case):
    def serve(self, *args):
        return run("serve", *args, "--http-port", 0, "--grpc-port", 0)

    def test_a_model_must_be_given(self):
        self.assert_fails(self.serve(), USAGE, "longstride serve MODEL")

    def last_line(self, result):
        return result.stderr.splitlines()[-1]

    def test_missing_and_broken_models(self):
        result = self.serve("/nonexistent/model.gguf")
        self.assertEqual(result.returncode, MODEL, result.stderr)
        self.assertIn("longstride: ", self.last_line(result))
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            file.write(b"GGUF" + bytes(40))
            file.flush()
            for command in (("serve", "--http-port", "0", "--grpc-port", "0"), ("inspect",),
                            ("tokenize",)):
                text = ["x"] if command[0] == "tokenize" else []
                result = run(command[0], file.name, *text, *command[1:])
                self.assertEqual(result.returncode, MODEL, result.stderr)

    @needs(GEMMA)
    def test_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            for flag, other in (("--http-port", "--grpc-port"), ("--grpc-port", "--http-port")):
                result = run("serve", GEMMA, flag, port, other, 0)
                self.assertEqual(result.returncode, ADDRESS, result.stderr)
                self.assertIn(str(port), self.last_line(result))

    @needs(GEMMA)
    def test_a_plan_that_does_not_suit_the_model(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as plan:
            plan.write('{"name": "p", "layers": [{"layers": "99", "pattern": "dense"}]}')
            plan.flush()
            result = self.serve(GEMMA, "--sparsity-plan", plan.name)
            self.assertEqual(result.returncode, USAGE, result.stderr)
            self.assertIn("layers[0]", self.last_line(result))
        result = self.serve(GEMMA, "--max-context", 10000000)
        self.assertEqual(result.returncode, USAGE, result.stderr)
        self.assertIn("32768", self.last_line(result))

    @needs(GEMMA)
    def test_too_little_memory(self):
        result = self.serve(GEMMA, "--kv-memory", "1KiB")
        self.assertEqual(result.returncode, MEMORY, result.stderr)
        self.assertIn("longstride: ", self.last_line(result))

    @needs(GEMMA)
    def test_cuda_is_refused_where_it_is_not_built_in(self):
        result = self.serve(GEMMA, "--device", "cuda")
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(self.last_line(result), "(?i)cuda")

    @needs(GEMMA)
    def test_key_and_tls_files_are_checked(self):
        result = self.serve(GEMMA, "--api-keys", "/nonexistent")
        self.assertEqual(result.returncode, USAGE, result.stderr)
        result = self.serve(GEMMA, "--tls-cert", "/nonexistent", "--tls-key", "/nonexistent")
        self.assertEqual(result.returncode, USAGE, result.stderr)

    @needs(GEMMA)
    def test_audit_options_are_checked(self):
        result = self.serve(GEMMA, "--audit-text")
        self.assertEqual(result.returncode, USAGE, result.stderr)
        self.assertIn("audit.file", result.stderr)
        for path in ("/dev/null", "/nonexistent/audit.jsonl"):
            result = self.serve(GEMMA, "--audit-file", path)
            self.assertEqual(result.returncode, USAGE, result.stderr)
            self.assertIn(path, result.stderr)

    def test_audit_verify_wants_a_file(self):
        self.assert_fails(run("audit"), USAGE, "verify FILE")
        self.assert_fails(run("audit", "verify", "/nonexistent"), USAGE, "/nonexistent")


class InspectTest(Case):
    @needs(GEMMA)
    def test_gemma(self):
        result = run("inspect", GEMMA, "--json", "--context", 30000, "--concurrency", 2)
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual(len(report["layers"]), 18)
        patterns = [layer["segments"][0]["pattern"] for layer in report["layers"]]
        self.assertEqual(patterns.count("window(512)"), 15)
        self.assertEqual(patterns.count("dense"), 3)
        self.assertEqual(report["max_context"], 32768)
        for density in report["density"]:
            self.assertAlmostEqual(density["patterns"]["dense"], 1.0)
            window = min(512, density["length"]) / density["length"]
            self.assertAlmostEqual(density["patterns"]["window(512)"], window, places=6)
            self.assertAlmostEqual(density["model"], (15 * window + 3) / 18, places=6)
        groups = {group["name"]: group for group in report["groups"]}
        full = next(group for group in groups.values() if group["retention"] == "all")
        self.assertEqual(full["pages_per_sequence"], -(-30000 // 64))
        window = next(group for group in groups.values() if group is not full)
        self.assertLessEqual(window["pages_per_sequence"], (512 + 512) // 64 + 2)
        memory = report["memory"]
        self.assertEqual(memory["kv_bytes"], 2 * memory["kv_bytes_per_sequence"])
        self.assertTrue(memory["fits"])
        self.assertGreater(memory["step_bytes"], 512 * 640 * 4)
        self.assertRegex(report["device"], r"^(cuda \(|cpu \(.+\); no CUDA: .)")
        self.assertRegex(report["model_digest"], r"^[0-9a-f]{32}$")

    def test_learned_sparsity_is_the_checkpoints_own_plan(self):
        for name, pattern, group in (
                ("minicpm", "infllm_v2(topk=2,init=1,window=64,dense_len=230)", "full_segments"),
                ("moba", "moba(2 of 128)", "full_summaries"),
                ("deepseek_v32", "dsa(21)", "full_index")):
            result = run("inspect", ROOT / "tests/parity/families/data" / name, "--json")
            self.assertEqual(result.returncode, 0, result.stderr)
            report = json.loads(result.stdout)
            for layer in report["layers"]:
                segment = layer["segments"][0]
                self.assertEqual(segment["pattern"], pattern)
                self.assertEqual(segment["native"], pattern)
                self.assertEqual(segment["group"], group)

    def test_attentions_that_a_layer_sums_are_shown_each(self):
        folder = ROOT / "tests/parity/families/data/nsa"
        result = run("inspect", folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("nsa_compressed in full_means + nsa_selected(3) in full_means + window(100) in full_means",
                      result.stdout)
        self.assertIn("note: parity only: no checkpoint", result.stdout)
        report = json.loads(run("inspect", folder, "--json").stdout)
        self.assertEqual([s["part"] for s in report["layers"][0]["segments"]], [0, 1, 2])
        self.assertEqual([s["native"] for s in report["layers"][0]["segments"]],
                         ["nsa_compressed", "nsa_selected(3)", "window(100)"])

    def test_families_of_several_devices_are_parity_only(self):
        for name in ("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa"):
            folder = ROOT / "tests/parity/families/data" / name
            result = run("inspect", folder)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("note: parity only:", result.stdout)
            report = json.loads(run("inspect", folder, "--json").stdout)
            self.assertEqual([note[:12] for note in report["notes"]], ["parity only:"])
        shared = json.loads(run("inspect", ROOT / "tests/parity/families/data/glm_moe_dsa",
                                "--json").stdout)
        groups = [layer["segments"][0]["group"] for layer in shared["layers"]]
        self.assertEqual(groups, ["full_index", "full_index", "full", "full_index", "full"])

    @needs(SMOLLM)
    def test_card_of_a_plan_with_its_report(self):
        folder = ROOT / "docs/fidelity"
        plan, report = folder / "smollm2-135m-plan.json", folder / "smollm2-135m.json"
        result = run("inspect", SMOLLM, "--plan", plan, "--fidelity-report", report, "--card")
        self.assertEqual(result.returncode, 0, result.stderr)
        card = result.stdout
        inspected = json.loads(run("inspect", SMOLLM, "--plan", plan, "--json").stdout)
        figures = json.loads(report.read_text("utf-8"))
        self.assertIn(inspected["model_digest"], card)
        self.assertIn(inspected["plan_digest"], card)
        self.assertIn("| 0-29 | 0-8 | window(1024)+sinks(4) | dense | **no** |", card)
        self.assertIn("in 30 of 30 layers", card)
        self.assertIn(f"{figures['divergence']['kl']['value']:.4f} (", card)
        self.assertIn(figures["identity"]["data"][0]["sha256"], card)
        self.assertIn("worst task", card)
        for heading in ("Model", "Sparsity plan", "What is approximated", "Fidelity", "Limits",
                        "How to verify"):
            self.assertIn(f"\n## {heading}\n", card)

    @needs(SMOLLM)
    def test_card_without_a_report_says_so(self):
        card = run("inspect", SMOLLM, "--card").stdout
        self.assertIn("Attention: nothing.", card)
        self.assertNotIn("**no**", card)
        self.assertIn("not measured here", card)
        card = run("inspect", SMOLLM, "--plan", "quest", "--card").stdout
        self.assertIn("in 28 of 30 layers", card)
        self.assertIn("| 0-1 | 0-8 | dense | dense | yes |", card)

    @needs(SMOLLM)
    def test_card_refuses_a_report_of_something_else(self):
        folder = ROOT / "docs/fidelity"
        plan, other = folder / "smollm2-135m-plan.json", folder / "gemma-3-270m.json"
        self.assertTrue(other.exists())
        card = ("inspect", SMOLLM, "--card", "--fidelity-report")
        self.assert_fails(run(*card, other, "--plan", plan), USAGE, "sha256:", "chosen by")
        self.assert_fails(run(*card, folder / "smollm2-135m.json"), USAGE, "but this card is about")
        self.assert_fails(run(*card, plan), USAGE, "no report")
        self.assert_fails(run(*card, "/nonexistent"), USAGE, "cannot be read")
        self.assert_fails(run("inspect", SMOLLM, "--fidelity-report", plan), USAGE, "--card")

    @needs(GEMMA)
    def test_text_says_the_same(self):
        result = run("inspect", GEMMA, "--kv-memory", "1MiB")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("window(512)", result.stdout)
        self.assertIn("It does not fit.", result.stdout)
        self.assertRegex(result.stdout, r"device: cpu \(")

    @needs(GEMMA)
    def test_says_what_would_run_the_model(self):
        report = json.loads(run("inspect", GEMMA, "--json", "--cpu-isa", "portable").stdout)
        self.assertTrue(report["device"].startswith("cpu (portable"), report["device"])
        # A device that was asked for and is not there is a mistake; one that was not is a remark.
        result = run("inspect", GEMMA, "--device", "cuda", "--kernels", "portable")
        if result.returncode == 0:
            self.assertRegex(result.stdout, r"device: .*portable kernels")
        else:
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertRegex(result.stderr, r"CUDA|NVIDIA")
            self.assertRegex(run("inspect", GEMMA).stdout, r"device: cpu \(.+\); no CUDA: ")

    @needs(GEMMA)
    def test_a_plan_changes_digest_and_density(self):
        native = json.loads(run("inspect", GEMMA, "--json").stdout)
        strided = json.loads(run("inspect", GEMMA, "--json", "--sparsity-profile", "strided").stdout)
        self.assertEqual(native["model_digest"], strided["model_digest"])
        self.assertNotEqual(native["plan_digest"], strided["plan_digest"])
        self.assertLess(strided["density"][-1]["model"], native["density"][-1]["model"])

    @needs(SMOLLM)
    def test_query_dependent_plans_show_both_classes(self):
        report = json.loads(run("inspect", SMOLLM, "--json", "--sparsity-profile", "quest").stdout)
        last = report["density"][-1]
        self.assertEqual(last["model"], 1)
        self.assertLess(last["generated"]["model"], 0.35)
        dense = json.loads(run("inspect", SMOLLM, "--json").stdout)
        self.assertEqual(dense["density"][-1]["generated"]["model"], 1)
        # Summaries cost memory: 3 rows beside 128.
        share = report["memory"]["kv_bytes_per_sequence"] / dense["memory"]["kv_bytes_per_sequence"]
        self.assertTrue(1.01 < share < 1.03, share)
        text = run("inspect", SMOLLM, "--sparsity-profile", "quest").stdout
        self.assertIn("quest(2048 tokens,sinks=1,recent=2)", text)
        self.assertIn("Keys that a generated token sees there", text)

    @needs(SMOLLM)
    def test_bad_query_dependent_plans_name_the_rule(self):
        for rule, part in (('{"pattern": "quest", "budget_tokens": 0}', "'budget_tokens' is 0"),
                           ('{"pattern": "quest", "budget_token": 128}', "Did you mean"),
                           ('{"layers": "99", "pattern": "block_topk", "fraction": 0.1}', "layer 99")):
            with tempfile.NamedTemporaryFile("w", suffix=".json") as plan:
                plan.write('{"layers": [%s]}' % rule)
                plan.flush()
                result = run("inspect", SMOLLM, "--sparsity-plan", plan.name)
            self.assertNotEqual(result.returncode, 0)
            self.assertIn("layers[0]", result.stderr)
            self.assertIn(part, result.stderr)

    @needs(GEMMA)
    def test_context_beyond_the_model(self):
        self.assert_fails(run("inspect", GEMMA, "--context", 40000), USAGE, "32768")


class TokenizeTest(Case):
    @needs(GEMMA)
    def test_sources_and_options(self):
        ids = json.loads(run("tokenize", GEMMA, "Hello world", "--json").stdout)
        self.assertEqual(ids[0], 2)  # BOS
        self.assertEqual(json.loads(run("tokenize", GEMMA, "--json", stdin="Hello world").stdout), ids)
        plain = json.loads(run("tokenize", GEMMA, "Hello world", "--json", "--plain").stdout)
        self.assertEqual(plain, ids[1:])
        listed = run("tokenize", GEMMA, "Hello world").stdout
        self.assertIn('\t"Hello"\n', listed)
        self.assertEqual([int(line.split("\t")[0]) for line in listed.splitlines()], ids)

    @needs(GEMMA)
    def test_special_tokens_are_text_unless_asked_for(self):
        text = json.loads(run("tokenize", GEMMA, "<start_of_turn>", "--json", "--plain").stdout)
        special = json.loads(run("tokenize", GEMMA, "<start_of_turn>", "--json", "--plain",
                                 "--special").stdout)
        self.assertGreater(len(text), 1)
        self.assertEqual(len(special), 1)


class GenerateTest(Case):
    @needs(SMOLLM)
    def test_chat_is_repeatable(self):
        args = ("generate", SMOLLM, "Tell me the capital of France in one sentence.", "--temperature", 0,
                "--max-tokens", 24)
        first, second = run(*args), run(*args)
        self.assertEqual(first.returncode, 0, first.stderr)
        self.assertIn("Paris", first.stdout)
        self.assertEqual(first.stdout, second.stdout)
        self.assertRegex(first.stderr, r"prompt: \d+ tokens .* answer: \d+ tokens .* tokens/s\)")

    @needs(GEMMA)
    def test_completion_from_a_file(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("The capital of France is")
            file.flush()
            result = run("generate", GEMMA, "--file", file.name, "--temperature", 0,
                         "--max-tokens", 12)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("the country of France", result.stdout)

    @needs(SMOLLM)
    def test_query_dependent_plans(self):
        with tempfile.TemporaryDirectory() as folder:
            paths = {}
            for name, text in {
                    "quest.json": '{"default": {"pattern": "quest", "budget_tokens": 256}}',
                    "topk.json": '{"default": {"pattern": "block_topk", "budget_tokens": 256, "sink_pages": 1}}',
                    "long.txt": " ".join(f"The number {i} follows the number {i - 1}." for i in range(1, 50)),
            }.items():
                paths[name] = os.path.join(folder, name)
                with open(paths[name], "w") as file:
                    file.write(text)
            short = ("generate", SMOLLM, "Tell me the capital of France in one sentence.",
                     "--temperature", 0, "--max-tokens", 16)
            long = ("generate", SMOLLM, "--raw", "--file", paths["long.txt"], "--temperature", 0,
                    "--max-tokens", 8)
            dense = run(*short)
            for plan in ("quest.json", "topk.json"):
                # Within the budget nothing changes; beyond it less is read, and the text goes on.
                result = run(*short, "--sparsity-plan", paths[plan])
                self.assertEqual(result.stdout, dense.stdout, result.stderr)
                result = run(*long, "--sparsity-plan", paths[plan])
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn("The number 50", result.stdout)
                share = float(re.search(r"attention: ([0-9.]+)%", result.stderr).group(1))
                self.assertLess(share, 99.9 if plan == "quest.json" else 70, result.stderr)

    @needs(SMOLLM)
    def test_values_out_of_range_are_refused(self):
        result = run("generate", SMOLLM, "x", "--temperature", -1)
        self.assert_fails(result, USAGE, "temperature")
        self.assert_fails(run("generate", SMOLLM, "x", "--raw", "--system", "y"), USAGE, "--raw")


class ServeTest(Case):
    @needs(GEMMA)
    def test_signal_while_loading_or_serving_ends_with_zero(self):
        for line in ("listening", "ready"):
            process = subprocess.Popen([BINARY, "serve", GEMMA, "--http-port", "0", "--grpc-port",
                                        "0"], stderr=subprocess.PIPE, text=True)
            for text in process.stderr:
                if re.search(rf" {line}\b", text):
                    break
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
            process.stderr.close()
            self.assertEqual(process.wait(30), 0, line)

    @needs(GEMMA)
    def test_bench_measures_a_running_server(self):
        process = subprocess.Popen([BINARY, "serve", GEMMA, "--http-port", "0", "--grpc-port", "0",
                                    "--log-format", "json"], stderr=subprocess.PIPE, text=True)
        try:
            port = None
            for text in process.stderr:
                entry = json.loads(text)
                port = entry.get("http_port", port)
                if entry["message"] == "ready":
                    break
            url = f"http://127.0.0.1:{port}"
            for mode in (("--concurrency", 2), ("--rate", 20)):
                result = run("bench", "--url", url, "--requests", 4, "--prompt-tokens", "20-40",
                             "--output-tokens", 8, "--json", *mode)
                self.assertEqual(result.returncode, 0, result.stderr)
                report = json.loads(result.stdout)
                self.assertEqual(report["failed"], 0, report)
                self.assertEqual(report["output_tokens"], 32)
                self.assertGreaterEqual(report["prompt_tokens"], 80)
                self.assertGreater(report["ttft_ms"]["p50"], 0)
                self.assertLessEqual(report["ttft_ms"]["p50"], report["ttft_ms"]["p99"])
            text = run("bench", "--url", url, "--requests", 1, "--output-tokens", 2)
            self.assertIn("time to first token", text.stdout)
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
            process.stderr.close()
            self.assertEqual(process.wait(60), 0)


if __name__ == "__main__":
    if not os.path.exists(BINARY):
        print(f"skipped: {BINARY} is not built")
        sys.exit(77)
    unittest.main()
