// One answer under way: asked for, read as it comes, written into its node of the conversation.

import { Failure, stream, timeline } from "./api.js";
import { lineTo } from "./tree.js";

const SENT = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const TELLS = { include_usage: true, include_timings: true };
const LATE_MS = 300; // the server ends a stopped answer within a step
const LOOKS = 3;
const PLAIN_TOKENS = 512; // where nothing is set: the API itself would stop at 16

export class Answer {
  // plain: names of models without a chat template, which is only found out by asking.
  // defaults: for what the conversation does not set; of what they leave out, the server's own hold.
  constructor(conversation, node, model, plain, defaults) {
    this.conversation = conversation;
    this.node = node;
    this.model = model;
    this.plain = plain;
    this.defaults = defaults;
    this.goesOn = node.text !== "";
    this.abort = new AbortController();
    this.changed = () => {};
  }

  stop() {
    this.abort.abort();
  }

  // Ends when the answer has, whatever became of it.
  async run() {
    const { node } = this;
    for (const name of ["error", "finish", "stats", "request", "seed"]) delete node[name];
    node.model = this.model;
    try {
      await this.read();
    } catch (error) {
      if (!this.abort.signal.aborted) {
        if (!(error instanceof Failure)) throw error;
        node.error = { kind: error.kind, words: error.message };
      }
      node.finish = this.abort.signal.aborted ? "stopped" : "error";
    }
    if (this.abort.signal.aborted) await this.askForStats();
  }

  async read() {
    if (!this.plain.has(this.model)) {
      try {
        return await this.readFrom("v1/chat/completions", this.chat());
      } catch (error) {
        if (error.code !== "no_chat_template") throw error;
        this.plain.add(this.model);
      }
    }
    const prompt = promptOf(this.conversation, this.node);
    return this.readFrom("v1/completions", { max_tokens: PLAIN_TOKENS, ...this.body(), prompt });
  }

  body() {
    const settings = { ...this.defaults, ...this.conversation.settings };
    const given = SENT.filter((name) => settings[name] !== undefined).map((name) => [name, settings[name]]);
    return { model: this.model, stream: true, stream_options: TELLS, ...Object.fromEntries(given) };
  }

  chat() {
    const before = lineTo(this.conversation, this.node).slice(0, this.goesOn ? undefined : -1);
    const messages = turns(before);
    const { system } = this.conversation.settings;
    if (system) messages.unshift({ role: "system", content: system });
    const more = this.goesOn ? { continue_final_message: true, add_generation_prompt: false } : {};
    return { ...this.body(), messages, ...more };
  }

  async readFrom(path, body) {
    const { node } = this;
    const told = (headers) => {
      node.request = headers.get("x-request-id");
      node.seed = headers.get("x-headrace-seed");
    };
    for await (const chunk of stream(path, body, this.abort.signal, told)) {
      if (chunk.usage || chunk.timings) node.stats = statsOf(chunk.usage, chunk.timings);
      const choice = chunk.choices?.[0];
      if (choice === undefined) continue;
      node.text += choice.delta?.content ?? choice.text ?? "";
      const thought = choice.delta?.reasoning_content;
      if (thought) node.reasoning = (node.reasoning ?? "") + thought;
      if (choice.finish_reason) node.finish = choice.finish_reason;
      this.changed();
    }
  }

  async askForStats() {
    const id = this.node.request;
    if (!id) return;
    let found = null;
    for (let look = 0; look < LOOKS && found === null; look += 1) {
      await new Promise((resolve) => { setTimeout(resolve, LATE_MS); });
      found = await timeline(id);
    }
    if (found === null) return;
    const usage = { prompt_tokens: found.prompt_tokens, completion_tokens: found.generated_tokens,
      prompt_tokens_details: { cached_tokens: found.cached_tokens } };
    this.node.stats = statsOf(usage, found);
  }
}

function statsOf(usage, timings) {
  return {
    prompt: usage?.prompt_tokens,
    cached: usage?.prompt_tokens_details?.cached_tokens ?? 0,
    generated: usage?.completion_tokens,
    total_ms: timings?.total_ms,
    ttft_ms: timings?.ttft_ms,
    causes: timings?.causes ?? [],
  };
}

// Answers that never came are left out, and what was asked before and after one is asked together: many templates want
// questions and answers in turn.
function turns(nodes) {
  const found = [];
  for (const { role, text } of nodes.filter((node) => node.text !== "")) {
    const last = found.at(-1);
    if (last?.role === role) last.content += `\n\n${text}`;
    else found.push({ role, content: text });
  }
  return found;
}

// For a model that only continues text: all that was written and answered, one after another.
function promptOf(conversation, node) {
  const parts = lineTo(conversation, node).map(({ role, text }, place) => (role === "user" && place > 0 ? `\n${text}` : text));
  const { system } = conversation.settings;
  return (system ? `${system}\n` : "") + parts.join("");
}
