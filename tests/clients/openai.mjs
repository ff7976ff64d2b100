// The openai package: chats, streams, tools, structured output by zod. Arguments: base URL, model.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const fixed = { model, messages, temperature: 0, max_tokens: 80 };
const ANSWER = "The capital of France is Paris.";

const City = z.object({
  name: z.string().max(12),
  size: z.enum(["small", "large"]),
  rank: z.number().int().min(1).max(9),
  founded: z.iso.date(),
  mayor: z.email().max(24).nullable(),
});
const Weather = z.object({ city: z.enum(["Paris", "Rome"]), days: z.number().int().min(1).max(3) });

async function chat() {
  const answer = await client.chat.completions.create(fixed);
  assert.equal(answer.choices[0].message.content, ANSWER);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.prompt_tokens + answer.usage.completion_tokens, answer.usage.total_tokens);
}

async function streaming() {
  const stream = await client.chat.completions.create({ ...fixed, stream: true, stream_options: { include_usage: true } });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), ANSWER);
  assert.ok(chunks.at(-1).usage.completion_tokens > 3);
  const events = [];
  const helper = client.chat.completions.stream(fixed).on("content", (delta) => events.push(delta));
  assert.equal(await helper.finalContent(), ANSWER);
  assert.equal(events.join(""), ANSWER);
}

async function tools() {
  const asked = { ...fixed, tools: [zodFunction({ name: "weather", parameters: Weather })], parallel_tool_calls: false };
  const named = { type: "function", function: { name: "weather" } };
  for (const tool_choice of ["required", named]) {
    const answer = await client.chat.completions.parse({ ...asked, tool_choice });
    const [call] = answer.choices[0].message.tool_calls;
    Weather.parse(call.function.parsed_arguments);
    const result = { role: "tool", tool_call_id: call.id, content: "sunny" };
    const round = { ...asked, messages: [...messages, answer.choices[0].message, result], tool_choice: "none" };
    assert.ok((await client.chat.completions.create(round)).choices[0].message.content);
  }
  const streamed = await client.chat.completions.stream({ ...asked, tool_choice: "required" }).finalMessage();
  Weather.parse(JSON.parse(streamed.tool_calls[0].function.arguments));
}

async function structured() {
  const asked = { ...fixed, response_format: zodResponseFormat(City, "city") };
  City.parse((await client.chat.completions.parse(asked)).choices[0].message.parsed);
  City.parse(JSON.parse(await client.chat.completions.stream(asked).finalContent()));
}

async function refused() {
  await assert.rejects(client.chat.completions.create({ ...fixed, temperature: 9 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    return error.param === "temperature" && error.code === "value_out_of_range";
  });
}

for (const step of [chat, streaming, tools, structured, refused]) await step();
