// The stream of events. Read with fetch, for an EventSource cannot send a key; ended while nobody looks.

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
const SILENCE_MS = 40_000; // heart-beats come more often
const KEY = "headrace-key";

export function keyHeaders() {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
}

export function rememberKey(key) {
  sessionStorage.setItem(KEY, key);
}

// told: event(data), state(text, isGone), keyWanted(wasGiven)
export class Feed {
  constructor(url, told) {
    this.url = url;
    this.told = told;
    this.waitMs = FIRST_WAIT_MS;
    this.current = null; // aborts what is under way
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.start()));
  }

  start() {
    if (this.current !== null || document.hidden) return;
    this.current = new AbortController();
    this.keepReading(this.current.signal);
  }

  stop() {
    this.current?.abort();
    this.current = null;
  }

  again() {
    this.stop();
    this.waitMs = FIRST_WAIT_MS;
    this.start();
  }

  async keepReading(signal) {
    while (!signal.aborted) {
      const why = await this.readOnce(signal);
      if (signal.aborted || why === null) return;
      const waitMs = this.waitMs * (0.75 + Math.random() / 2);
      this.waitMs = Math.min(2 * this.waitMs, LONGEST_WAIT_MS);
      this.told.state(`${why}; trying again in ${Math.ceil(waitMs / 1000)} s`, true);
      await pause(waitMs, signal);
    }
  }

  // Why it ended. null: there is no use in trying again by itself.
  async readOnce(signal) {
    const silence = new AbortController();
    const both = AbortSignal.any([signal, silence.signal]);
    let timer = setTimeout(() => silence.abort(), SILENCE_MS);
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
    };
    try {
      const answer = await fetch(this.url, { headers: keyHeaders(), signal: both, cache: "no-store" });
      if (answer.status === 401) {
        this.told.state("a key is needed", true);
        this.told.keyWanted("authorization" in keyHeaders());
        return null;
      }
      if (!answer.ok) return await refusal(answer);
      await this.readEvents(answer.body, heard);
      return "the server has ended the stream";
    } catch {
      return silence.signal.aborted ? "the server is silent" : "the server cannot be reached";
    } finally {
      clearTimeout(timer);
    }
  }

  async readEvents(body, heard) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      const data = blocks.filter((block) => block.startsWith("data: "));
      if (data.length === 0) continue;
      this.waitMs = FIRST_WAIT_MS;
      this.told.state("live", false);
      this.told.event(JSON.parse(data.at(-1).slice("data: ".length))); // the newest says it all
    }
  }
}

async function refusal(answer) {
  try {
    return (await answer.json()).error.message.replace(/\.$/, "");
  } catch {
    return `the server answers ${answer.status}`;
  }
}

function pause(waitMs, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, waitMs);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}
