// The AI SDK with its provider for OpenAI-compatible servers: text, streams, tools, objects. Arguments: base URL, model.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, name] = process.argv.slice(2);
const settings = { name: "headrace", baseURL, apiKey: "any", includeUsage: true, supportsStructuredOutputs: true };
const model = createOpenAICompatible(settings).chatModel(name);
const prompt = "What is the capital of France?";
const fixed = { model, prompt, temperature: 0, maxOutputTokens: 80, maxRetries: 0 };
const ANSWER = "The capital of France is Paris.";

const City = z.object({
  name: z.string().max(12),
  size: z.enum(["small", "large"]),
  rank: z.number().int().min(1).max(9),
});
const weather = tool({
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.enum(["Paris", "Rome"]) }),
  execute: async ({ city }) => ({ city, sky: "sunny" }),
});

async function text() {
  const answer = await generateText(fixed);
  assert.equal(answer.text, ANSWER);
  assert.equal(answer.finishReason, "stop");
  assert.ok(answer.usage.inputTokens > 0 && answer.usage.outputTokens > 0);
}

async function streaming() {
  const answer = streamText(fixed);
  const parts = [];
  for await (const part of answer.textStream) parts.push(part);
  assert.equal(parts.join(""), ANSWER);
  assert.ok(parts.length > 3 && (await answer.usage).outputTokens > 3);
}

async function tools() {
  const asked = { ...fixed, tools: { weather }, toolChoice: "required" };
  const answer = await generateText(asked);
  assert.equal(answer.finishReason, "tool-calls");
  assert.equal(answer.toolResults[0].output.sky, "sunny");
  const named = await generateText({ ...asked, toolChoice: { type: "tool", toolName: "weather" } });
  assert.ok(["Paris", "Rome"].includes(named.toolCalls[0].input.city));
  const streamed = streamText(asked);
  assert.ok((await streamed.toolCalls).every((call) => call.toolName === "weather"));
  const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? asked.toolChoice : "none" });
  const loop = await generateText({ ...asked, stopWhen: stepCountIs(2), prepareStep });
  assert.ok(loop.steps.length === 2 && loop.text);
}

async function objects() {
  City.parse((await generateObject({ ...fixed, schema: City })).object);
  const streamed = streamObject({ ...fixed, schema: City });
  const parts = [];
  for await (const part of streamed.partialObjectStream) parts.push(part);
  City.parse(await streamed.object);
  assert.ok(parts.length > 1);
}

for (const step of [text, streaming, tools, objects]) await step();
