// The server's API: its models, its streams, and what went wrong, in words.

import { key } from "./store.js";

const SILENCE_MS = 60_000; // heart-beats come more often
const AT = new URL("../", import.meta.url);
const ADVICE = {
  context_length_exceeded: "Begin a new chat, or set a smaller max_tokens.",
  draining: "It is being restarted.",
  engine_unavailable: "It may be starting again.",
};

// kind: "key", "refused", "broken", "unreachable"
export class Failure extends Error {
  constructor(kind, words, code = null) {
    super(words);
    this.kind = kind;
    this.code = code;
  }
}

function headers(more = {}) {
  const secret = key();
  return secret ? { ...more, authorization: `Bearer ${secret}` } : more;
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(new URL(path, AT), { cache: "no-store", ...options, headers: headers(options.headers) });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Failure("unreachable", "The server cannot be reached. Is it running?");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  let error = {};
  try {
    error = (await answer.json()).error ?? {};
  } catch {
    // something between this page and the server has answered
  }
  const words = typeof error.message === "string" ? error.message : `The server answers ${answer.status}.`;
  if (answer.status === 401) return new Failure("key", words, error.code);
  const seconds = Number(answer.headers.get("retry-after"));
  const wait = seconds > 0 ? `There may be room again in ${seconds} s.` : "";
  return new Failure("refused", withAdvice(words, error.code, wait), error.code);
}

function withAdvice(words, code, more = "") {
  return [words, ADVICE[code] ?? "", more].filter((part) => part !== "").join(" ");
}

export async function models() {
  const answer = await ask("v1/models", { signal: AbortSignal.timeout(SILENCE_MS) });
  return (await answer.json()).data;
}

// null: nobody knows. Of an answer that was stopped, which had no last chunk to tell it.
export async function timeline(id) {
  try {
    const answer = await ask(`v1/requests/${encodeURIComponent(id)}/timeline`, { signal: AbortSignal.timeout(5000) });
    const found = await answer.json();
    return found.outcome === null ? null : found;
  } catch {
    return null;
  }
}

// The data of each event, until [DONE]. told(headers) comes first. Raises Failure, or the abort that `signal` asked for.
export async function* stream(path, body, signal, told) {
  const silence = new AbortController();
  let timer = null;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), SILENCE_MS);
  };
  heard();
  try {
    const answer = await ask(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.any([signal, silence.signal]),
    });
    told(answer.headers);
    for await (const data of eventsOf(answer.body, heard)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failure("broken", withAdvice(chunk.error.message, chunk.error.code), chunk.error.code);
      yield chunk;
    }
    throw new Failure("broken", "The answer broke off: the server ended the stream too early.");
  } catch (error) {
    if (error instanceof Failure || signal.aborted) throw error;
    const words = silence.signal.aborted ? "The server has been silent for a minute." : "The connection was lost.";
    throw new Failure("broken", words);
  } finally {
    clearTimeout(timer);
  }
}

async function* eventsOf(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        if (event.startsWith("data: ")) yield event.slice("data: ".length); // others are heart-beats
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
