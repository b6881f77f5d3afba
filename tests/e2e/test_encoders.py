"""Encoders behind a real server: vectors and labels against those of other implementations, which lie
beside the tiny checkpoints (tests/parity/encoders), through unmodified clients."""

import json
import math
import threading
import unittest

import grpc
import openai

import harness

DATA = harness.ROOT / "tests" / "parity" / "encoders" / "data"
TOLERANCE = 1e-4


class EncoderTest(harness.ServerTest):
    checkpoint = ""
    flags = ("--device", "cpu", "--kv-memory", "64M", "--kv-dtype", "f32")

    @classmethod
    def model(cls):
        return DATA / cls.checkpoint

    @classmethod
    def golden(cls):
        return json.loads((cls.model() / "golden.json").read_text())["texts"]

    def setUp(self):
        self.client = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0)

    def tearDown(self):
        self.assert_pool_empty()

    def assert_close(self, got, wanted):
        self.assertEqual(len(got), len(wanted))
        for a, b in zip(got, wanted):
            self.assertAlmostEqual(a, b, delta=TOLERANCE)

    def refused(self, path, body, param, *parts, code=400):
        status, _, text = self.server.fetch(path, body)
        self.assertEqual(status, code, text)
        error = json.loads(text)["error"]
        self.assertEqual(error["param"], param, text)
        for part in parts:
            self.assertIn(part, error["message"])

    def stub(self):
        self.channel = grpc.insecure_channel(self.server.grpc_address)
        self.addCleanup(self.channel.close)
        return harness.stubs().InferenceStub(self.channel)


class Embedders:
    """The tests of every embedding checkpoint."""

    patterns = ["bidirectional", "bidirectional_window(9)"]

    def test_openai_client_gets_the_golden_vectors(self):
        golden = self.golden()
        model = self.client.models.list().data[0].id
        answer = self.client.embeddings.create(model=model, input=[g["text"] for g in golden])
        for entry, wanted in zip(answer.data, golden):
            self.assert_close(entry.embedding, wanted["embedding"])
            self.assertAlmostEqual(math.hypot(*entry.embedding), 1, places=4)
        self.assertEqual(answer.usage.prompt_tokens, sum(len(g["ids"]) for g in golden))
        # Token ids are taken as they are, and one text's vector does not depend on the others.
        for wanted, entry in zip(golden, answer.data):
            alone = self.client.embeddings.create(model=model, input=wanted["ids"])
            self.assertEqual(alone.data[0].embedding, entry.embedding)
        floats = self.client.embeddings.create(model=model, input=golden[1]["text"],
                                               encoding_format="float")
        self.assert_close(floats.data[0].embedding, golden[1]["embedding"])

    def test_grpc_gives_the_same(self):
        pb, golden = harness.messages(), self.golden()
        request = pb.EmbedRequest(inputs=[pb.EmbedInput(text=g["text"]) for g in golden])
        response = self.stub().Embed(request)
        for vector, wanted in zip(response.embeddings, golden):
            self.assert_close(vector.values, wanted["embedding"])

    def test_long_documents_and_many_at_once(self):
        model = self.client.models.list().data[0].id
        texts = ["word " * n for n in (1, 20, 100, 190)] * 8
        whole = self.client.embeddings.create(model=model, input=texts)
        for i, entry in enumerate(whole.data):
            self.assertEqual(entry.embedding, whole.data[i % 4].embedding)
        self.assertGreater(self.server.metric("longstride:requests_submitted_total", kind="embed"), 0)
        self.assertGreater(self.server.metric("longstride:attention_keys_total", kind="visible"), 0)

    def test_refusals(self):
        self.refused("/v1/completions", {"prompt": "x"}, "model", "is an encoder")
        self.refused("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "model",
                     "is an encoder")
        self.refused("/v1/classify", {"input": "x"}, "model", "no classifier")
        self.refused("/v1/embeddings", {"input": ""}, "input", "is empty")
        self.refused("/v1/embeddings", {"input": "x" * 5000}, "input", "context is 1024 tokens")
        with self.assertRaises(grpc.RpcError) as caught:
            pb = harness.messages()
            self.stub().GenerateOnce(pb.GenerateRequest(text=pb.TextPrompt(text="x")))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)

    def test_the_model_says_what_it_is(self):
        meta = json.loads(self.server.fetch("/v1/models")[2])["data"][0]["meta"]
        self.assertTrue(meta["encoder"])
        self.assertEqual(meta["labels"], [])
        self.assertEqual(meta["embedding_dim"], len(self.golden()[0]["embedding"]))
        status, _, picture = self.server.fetch("/longstride/attention_map?length=256")
        self.assertEqual(status, 200)
        patterns = json.loads(picture)["patterns"]
        self.assertEqual(sorted(p["pattern"] for p in patterns), self.patterns)


class ModernBertEmbedder(Embedders, EncoderTest):
    checkpoint = "modernbert_embedder"


class EmbeddingGemma(Embedders, EncoderTest):
    checkpoint = "embeddinggemma"


class LongformerEmbedder(Embedders, EncoderTest):
    checkpoint = "longformer_embedder"
    patterns = ["bidirectional_window(9)"]


class Classifiers:
    """The tests of every classifying checkpoint."""

    def classify(self, **body):
        status, _, text = self.server.fetch("/v1/classify", body)
        self.assertEqual(status, 200, text)
        return json.loads(text)

    def best(self, scores):
        return self.labels[scores.index(max(scores))]

    def test_labels_and_probabilities(self):
        golden = self.golden()
        before = self.server.metric("longstride:requests_submitted_total", kind="classify")
        answer = self.classify(model=self.client.models.list().data[0].id,
                               input=[g["text"] for g in golden])
        for i, (entry, wanted) in enumerate(zip(answer["data"], golden)):
            self.assertEqual(entry["index"], i)
            self.assert_close(entry["probs"], wanted["scores"])
            self.assertEqual(entry["label"], self.best(wanted["scores"]))
            self.assertEqual(entry["num_classes"], len(self.labels))
        tokens = sum(len(g["ids"]) for g in golden)
        self.assertEqual(answer["usage"], {"prompt_tokens": tokens, "total_tokens": tokens})
        self.assertEqual(self.server.metric("longstride:requests_submitted_total", kind="classify"),
                         before + len(golden))
        one = self.classify(input=golden[1]["text"])["data"]
        self.assertEqual(one[0]["probs"], answer["data"][1]["probs"])

    def test_grpc_gives_the_same(self):
        pb, golden = harness.messages(), self.golden()
        request = pb.ClassifyRequest(inputs=[pb.EmbedInput(text=g["text"]) for g in golden])
        response = self.stub().Classify(request)
        self.assertEqual(list(response.labels), self.labels)
        for entry, wanted in zip(response.classifications, golden):
            self.assert_close(entry.probabilities, wanted["scores"])
            self.assertEqual(entry.label, self.best(wanted["scores"]))

    def test_company_changes_nothing(self):
        texts = [g["text"] for g in self.golden()]
        alone = [self.classify(input=text)["data"][0]["probs"] for text in texts]
        answers = [None] * 24

        def ask(i):
            answers[i] = self.classify(input=texts[i % len(texts)])["data"][0]["probs"]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(answers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, answer in enumerate(answers):
            self.assertEqual(answer, alone[i % len(texts)])

    def test_refusals(self):
        self.refused("/v1/classify", {"input": ""}, "input", "is empty")
        self.refused("/v1/classify", {"input": ["x", ""]}, "input[1]", "is empty")
        self.refused("/v1/classify", {"input": "x" * 5000}, "input", "context is 1024 tokens")
        self.refused("/v1/completions", {"prompt": "x"}, "model", "/v1/classify")
        self.refused("/v1/classify", {"model": "other", "input": "x"}, "model", "not served", code=404)

    def test_also_embeds(self):
        vector = self.client.embeddings.create(model="", input="a text").data[0].embedding
        self.assertEqual(len(vector), 32)


class ModernBertClassifier(Classifiers, EncoderTest):
    checkpoint = "modernbert_classifier"
    labels = ["negative", "neutral", "positive"]


class ModernBertMultiLabel(Classifiers, EncoderTest):
    checkpoint = "modernbert_multi_label"
    labels = ["law", "finance", "health", "sport"]


class LongformerClassifier(Classifiers, EncoderTest):
    checkpoint = "longformer_classifier"
    labels = ["argument", "opinion", "report"]


class CausalModel(harness.ServerTest):
    def test_does_not_classify(self):
        status, _, text = self.server.fetch("/v1/classify", {"input": "x"})
        self.assertEqual(status, 400)
        self.assertIn("has no classifier", json.loads(text)["error"]["message"])


del EncoderTest  # has no checkpoint of its own

if __name__ == "__main__":
    unittest.main()
