"""Unmodified clients against a real server: the OpenAI SDK, gRPC stubs, health and reflection."""

import math
import unittest

import grpc
import openai
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase)

import harness


class OpenAiClient(harness.ServerTest):
    def setUp(self):
        self.client = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0)
        self.model = self.client.models.list().data[0].id

    def tearDown(self):
        self.assert_pool_empty()

    def chat(self, **options):
        return self.client.chat.completions.create(
            model=self.model, max_tokens=24, temperature=0,
            messages=[{"role": "user", "content": "Tell me the capital of France in one sentence."}], **options)

    def test_chat_answers_sensibly(self):
        answer = self.chat()
        self.assertIn("Paris", answer.choices[0].message.content)
        self.assertGreater(answer.usage.prompt_tokens, 5)

    def test_stream_equals_whole_answer(self):
        whole = self.chat().choices[0]
        text, finish, usage = "", None, None
        for chunk in self.chat(stream=True, stream_options={"include_usage": True}):
            if chunk.usage is not None:
                usage = chunk.usage
                self.assertEqual(chunk.choices, [])
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        self.assertEqual(text, whole.message.content)
        self.assertEqual(finish, whole.finish_reason)
        self.assertGreater(usage.completion_tokens, 0)

    def test_logprobs(self):
        choice = self.chat(logprobs=True, top_logprobs=3).choices[0]
        for entry in choice.logprobs.content:
            self.assertLessEqual(entry.logprob, 0)
            self.assertEqual(len(entry.top_logprobs), 3)
            self.assertEqual(entry.top_logprobs[0].logprob, entry.logprob)  # greedy takes the best

    def test_seed_repeats_and_choices_differ(self):
        def sample(seed):
            answer = self.client.completions.create(
                model=self.model, prompt="Once upon a time", max_tokens=16, temperature=1.2,
                seed=seed, n=3)
            return [choice.text for choice in answer.choices]
        self.assertEqual(sample(5), sample(5))
        self.assertGreater(len(set(sample(5))), 1)

    def test_stop_string_is_not_in_the_text(self):
        answer = self.client.completions.create(
            model=self.model, prompt="1, 2, 3, 4, 5,", max_tokens=40, temperature=0, stop=[" 8"])
        self.assertNotIn(" 8", answer.choices[0].text)
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_echo_scores_the_prompt(self):
        answer = self.client.completions.create(
            model=self.model, prompt="The sky is blue", max_tokens=0, echo=True, logprobs=1)
        logprobs = answer.choices[0].logprobs
        self.assertEqual("".join(logprobs.tokens), "The sky is blue")
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertTrue(all(value < 0 for value in logprobs.token_logprobs[1:]))

    def test_embeddings_have_unit_length_and_tell_texts_apart(self):
        texts = ["a cat sat on a mat", "a cat sat on the mat", "stock prices fell sharply today"]
        vectors = [entry.embedding for entry in
                   self.client.embeddings.create(model=self.model, input=texts).data]
        for vector in vectors:
            self.assertAlmostEqual(math.hypot(*vector), 1, places=4)
        dot = lambda a, b: sum(x * y for x, y in zip(a, b))
        self.assertGreater(dot(vectors[0], vectors[1]), dot(vectors[0], vectors[2]))

    def test_errors_are_the_sdks_own(self):
        with self.assertRaises(openai.NotFoundError):
            self.client.completions.create(model="other", prompt="x")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model=self.model, prompt="x", temperature=-1)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model=self.model, prompt="x", max_tokens=10**8)
        self.assertEqual(caught.exception.code, "context_length_exceeded")

    def test_async_client_and_timeout(self):
        with self.assertRaises(openai.APITimeoutError):
            self.client.with_options(timeout=0.05).completions.create(
                model=self.model, prompt="x " * 3000, max_tokens=400)


class GrpcClient(harness.ServerTest):
    def setUp(self):
        self.pb = harness.messages()
        self.channel = grpc.insecure_channel(self.server.grpc_address)
        self.stub = harness.stubs().InferenceStub(self.channel)

    def tearDown(self):
        self.channel.close()
        self.assert_pool_empty()

    def request(self, prompt="Once upon a time", seed=11, max_tokens=20):
        request = self.pb.GenerateRequest(text=self.pb.TextPrompt(text=prompt))
        request.sampling.seed = seed
        request.sampling.temperature = 1.0
        request.stopping.max_tokens = max_tokens
        return request

    def test_same_tokens_as_rest_with_the_same_seed(self):
        ids, text = [], ""
        for event in self.stub.Generate(self.request()):
            ids += [token.id for token in event.delta.tokens]
            text += event.delta.text
        once = self.stub.GenerateOnce(self.request())
        self.assertEqual([token.id for token in once.choices[0].tokens], ids)
        self.assertEqual(once.choices[0].text, text)
        status, _, body = self.server.fetch("/v1/completions", {
            "prompt": "Once upon a time", "seed": 11, "temperature": 1.0, "max_tokens": 20,
            "return_token_ids": True})
        self.assertEqual(status, 200)
        choice = harness.json.loads(body)["choices"][0]
        self.assertEqual(choice["token_ids"], ids)
        self.assertEqual(choice["text"], text)

    def test_chat(self):
        request = self.pb.GenerateRequest(chat=self.pb.Chat(messages=[
            self.pb.ChatMessage(role="user", content="Tell me the capital of France in one sentence.")]))
        request.sampling.temperature = 0
        request.stopping.max_tokens = 24
        self.assertIn("Paris", self.stub.GenerateOnce(request).choices[0].text)

    def test_tokenizer_round_trip(self):
        text = "Grüße, 世界 🌍!"
        ids = self.stub.Tokenize(self.pb.TokenizeRequest(
            text=self.pb.TextPrompt(text=text, no_special_tokens=True))).ids
        self.assertEqual(self.stub.Detokenize(self.pb.DetokenizeRequest(ids=ids)).text, text)

    def test_deadline_and_bad_request(self):
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.stub.Generate(self.request("x " * 3000, max_tokens=400), timeout=0.1))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        with self.assertRaises(grpc.RpcError) as caught:
            self.stub.GenerateOnce(self.pb.GenerateRequest())
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)

    def test_health_and_reflection(self):
        health = health_pb2_grpc.HealthStub(self.channel)
        for service in ("", "longstride.v1.Inference", "readiness", "liveness"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING)
        services = ProtoReflectionDescriptorDatabase(self.channel).get_services()
        self.assertIn("longstride.v1.Inference", services)
        self.assertIn("grpc.health.v1.Health", services)

    def test_model_and_server_info(self):
        models = self.stub.ListModels(self.pb.ListModelsRequest()).models
        self.assertEqual(len(models), 1)
        self.assertTrue(models[0].plan_digest)
        self.assertEqual(sorted(layer for p in models[0].patterns for layer in p.layers),
                         list(range(models[0].num_layers)))
        info = self.stub.GetServerInfo(self.pb.GetServerInfoRequest())
        self.assertEqual(info.state, self.pb.SERVER_STATE_READY)


if __name__ == "__main__":
    unittest.main()
