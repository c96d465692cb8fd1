// The official openai client for Node against a running server, one test a feature.
//   QUEUESERVE_URL=http://127.0.0.1:8000/v1 CHAT_MODEL=… EMBEDDING_MODEL=… node --test openai.test.mjs
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const { QUEUESERVE_URL: baseURL, CHAT_MODEL: model, EMBEDDING_MODEL: embedder } = process.env;
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const capital = [
  { role: "user", content: "What is the capital of France? Answer in one sentence." },
];
const greedy = { model, messages: capital, temperature: 0, max_completion_tokens: 32 };
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city.",
    parameters: {
      type: "object",
      properties: { city: { enum: ["Paris", "Rome"] } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};

async function all(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

test("models are listed and retrieved", async () => {
  const names = (await all(await client.models.list())).map((each) => each.id);
  assert.ok(names.includes(model));
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("an answer in one piece", async () => {
  const answer = await client.chat.completions.create(greedy);
  assert.match(answer.choices[0].message.content, /Paris/);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(
    answer.usage.total_tokens,
    answer.usage.prompt_tokens + answer.usage.completion_tokens,
  );
});

test("a stream gives the same text, and usage when asked", async () => {
  const whole = await client.chat.completions.create(greedy);
  const chunks = await all(
    await client.chat.completions.create({
      ...greedy,
      stream: true,
      stream_options: { include_usage: true },
    }),
  );
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
});

test("the client's own stream helper puts the message together", async () => {
  const stream = client.chat.completions.stream(greedy);
  const message = await stream.finalMessage();
  assert.match(message.content, /Paris/);
});

test("several choices, stop strings and seeds", async () => {
  const answer = await client.chat.completions.create({ ...greedy, temperature: 1, seed: 5, n: 3 });
  assert.deepEqual(
    answer.choices.map((choice) => choice.index),
    [0, 1, 2],
  );
  const stopped = await client.chat.completions.create({ ...greedy, stop: ["Paris"] });
  assert.doesNotMatch(stopped.choices[0].message.content, /Paris/);
});

test("logprobs", async () => {
  const answer = await client.chat.completions.create({
    ...greedy,
    logprobs: true,
    top_logprobs: 2,
  });
  const tokens = answer.choices[0].logprobs.content;
  assert.equal(tokens.map((each) => each.token).join(""), answer.choices[0].message.content);
  assert.equal(tokens[0].top_logprobs.length, 2);
});

test("a schema made with zod is kept, and the client parses the answer", async () => {
  const City = z.object({ name: z.enum(["Paris", "Rome"]), population: z.number().int() });
  const answer = await client.chat.completions.parse({
    ...greedy,
    max_completion_tokens: 128,
    response_format: zodResponseFormat(City, "city"),
  });
  assert.ok(["Paris", "Rome"].includes(answer.choices[0].message.parsed.name));
});

test("a tool that is required is called with valid arguments", async () => {
  const request = {
    ...greedy,
    max_completion_tokens: 128,
    tools: [weather],
    tool_choice: "required",
  };
  const { message, finish_reason } = (await client.chat.completions.create(request)).choices[0];
  assert.equal(finish_reason, "tool_calls");
  assert.ok(["Paris", "Rome"].includes(JSON.parse(message.tool_calls[0].function.arguments).city));
  const streamed = await client.chat.completions.stream(request).finalMessage();
  assert.equal(streamed.tool_calls[0].function.name, "get_weather");
  JSON.parse(streamed.tool_calls[0].function.arguments);
});

test("the client's tool runner goes through a call to the answer", async () => {
  const called = [];
  const runner = client.chat.completions.runTools({
    ...greedy,
    max_completion_tokens: 64,
    tool_choice: { type: "function", function: { name: "get_weather" } },
    tools: [
      {
        type: "function",
        function: {
          ...weather.function,
          parse: JSON.parse,
          function: ({ city }) => {
            called.push(city);
            return `It is sunny in ${city}.`;
          },
        },
      },
    ],
  });
  await runner.done();
  assert.equal(called.length, 1);
});

test("plain completions, of several prompts, with echo", async () => {
  const answer = await client.completions.create({
    model,
    prompt: ["The capital of France is", "The capital of Italy is"],
    temperature: 0,
    max_tokens: 4,
    echo: true,
  });
  assert.equal(answer.choices.length, 2);
  assert.match(answer.choices[1].text, /^The capital of Italy is/);
});

test("embeddings, as the client decodes them from base64", async () => {
  const answer = await client.embeddings.create({ model: embedder, input: ["a cat", "a dog"] });
  assert.equal(answer.data.length, 2);
  assert.equal(answer.data[1].index, 1);
  const length = Math.hypot(...answer.data[0].embedding);
  assert.ok(Math.abs(length - 1) < 1e-3);
});

test("responses, in one piece and as a stream, and one that follows another", async () => {
  const request = { model, input: capital[0].content, temperature: 0, max_output_tokens: 32 };
  const answer = await client.responses.create(request);
  assert.equal(answer.status, "completed");
  assert.match(answer.output_text, /Paris/);
  const events = await all(await client.responses.create({ ...request, stream: true }));
  assert.equal(events[0].type, "response.created");
  assert.equal(events.at(-1).type, "response.completed");
  assert.deepEqual(
    events.map((event) => event.sequence_number),
    events.map((_, at) => at),
  );
  const next = await client.responses.create({
    ...request,
    input: "Say that again.",
    previous_response_id: answer.id,
  });
  assert.equal(next.previous_response_id, answer.id);
  assert.equal((await client.responses.retrieve(answer.id)).output_text, answer.output_text);
  await client.responses.delete(answer.id);
  await assert.rejects(client.responses.retrieve(answer.id), OpenAI.NotFoundError);
});

test("errors are the client's own kinds", async () => {
  await assert.rejects(
    client.chat.completions.create({ ...greedy, model: "nobody" }),
    OpenAI.NotFoundError,
  );
  await assert.rejects(
    client.chat.completions.create({ ...greedy, temperature: 3 }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
  );
});

test("a client that aborts a stream frees itself at once", async () => {
  const stream = await client.chat.completions.create({ ...greedy, stream: true });
  for await (const _ of stream) break;
  assert.ok(stream.controller.signal.aborted);
});
