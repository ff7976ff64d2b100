// Where a request's time went: one bar, with its parts named.

import { keyHeaders } from "./feed.js";
import { element, ms, percent, write } from "./text.js";

const COLOURS = 8;
const AGAIN_MS = 1000; // while it runs

const part = (name) => document.getElementById(`timeline${name}`);

export class Timeline {
  constructor() {
    this.dialog = part("");
    this.id = null;
    this.timer = null;
    this.dialog.addEventListener("close", () => {
      this.id = null;
      clearTimeout(this.timer);
    });
  }

  open(id) {
    this.id = id;
    write(part("-title"), id);
    this.say("…");
    if (!this.dialog.open) this.dialog.showModal();
    this.ask(id);
  }

  say(text) {
    write(part("-sum"), text);
    for (const name of ["-bar", "-causes", "-events"]) part(name).replaceChildren();
  }

  async ask(id) {
    let found;
    try {
      const url = new URL(`../v1/requests/${encodeURIComponent(id)}/timeline`, import.meta.url);
      const answer = await fetch(url, { headers: keyHeaders(), cache: "no-store" });
      found = answer.ok ? await answer.json() : null;
      if (this.id !== id) return;
      if (found === null) return this.say(answer.status === 404 ? "Its timeline is not known (any more)." : `The server answers ${answer.status}.`);
    } catch {
      if (this.id === id) this.say("The server cannot be reached.");
      return;
    }
    this.show(found);
    if (found.outcome === null) this.timer = setTimeout(() => this.ask(id), AGAIN_MS);
  }

  show(found) {
    const how = found.outcome === null ? "is running" : `ended: ${found.outcome}`;
    write(part("-sum"), `${found.endpoint}, ${how}, ${ms(found.total_ms)}`);
    const causes = found.causes;
    part("-bar").replaceChildren(...causes.map(segment));
    part("-bar").setAttribute("aria-label", causes.map(({ cause, ms: each }) => `${cause} ${ms(each)}`).join(", "));
    table(part("-causes"), ["cause", "time", "share"],
      causes.map(({ cause, ms: each }, place) => [named(cause, place), ms(each), percent(each, found.total_ms)]));
    table(part("-events"), ["event", "at"], found.events.map(({ name, at_ms: at }) => [name, ms(at)]));
  }
}

function segment({ cause, ms: each }, place) {
  const made = element("span", { class: `cause-${place % COLOURS}`, title: `${cause} ${ms(each)}` });
  made.style.setProperty("--share", `${each}`);
  return made;
}

function named(cause, place) {
  return element("span", {}, element("span", { class: `swatch cause-${place % COLOURS}` }), cause);
}

function table(target, titles, lines) {
  const kind = (place) => (place > 0 ? "number" : "");
  const row = (name, values, more) => element("tr", {},
    ...values.map((value, place) => element(name, { class: kind(place), ...more }, value)));
  target.replaceChildren(element("thead", {}, row("th", titles, { scope: "col" })),
    element("tbody", {}, ...lines.map((values) => row("td", values, {}))));
}
