// Puts the page together: each event of the feed is shown as it is, nothing is computed from several.

import { BlockMap } from "./blocks.js";
import { Feed, rememberKey } from "./feed.js";
import { Figure } from "./sparkline.js";
import { ENDED, RUNNING, Table, WAITING } from "./tables.js";
import { count, ms, rate, write } from "./text.js";
import { Timeline } from "./timeline.js";

const byId = (id) => document.getElementById(id);
const sum = (event, name) => event.engines.reduce((total, engine) => total + engine[name], 0);

const figures = [
  new Figure("tokens/s, generated", [(event) => event.lately.tokens_per_s], rate),
  new Figure("tokens/s, of prompts", [(event) => event.lately.prompt_tokens_per_s], rate),
  new Figure("first token, p50", [(event) => event.lately.ttft_p50_ms, (event) => event.lately.ttft_p99_ms], ms, "p99"),
  new Figure("between tokens, p50", [(event) => event.lately.itl_p50_ms, (event) => event.lately.itl_p99_ms], ms, "p99"),
  new Figure("running", [(event) => sum(event, "running"), (event) => sum(event, "waiting")], count, "waiting"),
  new Figure("requests", [(event) => event.requests, (event) => event.streams], count, "streams"),
];
byId("figures").append(...figures.map((figure) => figure.root));

const timeline = new Timeline();
const open = (id) => timeline.open(id);
const running = new Table(byId("rows"), RUNNING, "Nothing is running.", open);
const waiting = new Table(byId("queue"), WAITING, "Nothing is waiting.", open);
const ended = new Table(byId("ended"), ENDED, "Nothing has ended yet.", open);
const maps = new Map();

function mapOf(engine) {
  if (!maps.has(engine.name)) {
    const made = new BlockMap();
    maps.set(engine.name, made);
    byId("engines").append(made.root);
  }
  return maps.get(engine.name);
}

function number(shown, all) {
  return shown < all ? `${count(shown)} of ${count(all)}` : count(all);
}

function show(event) {
  write(byId("model"), `${event.model} · ${event.version}`);
  const rows = event.engines.flatMap((engine) => engine.rows);
  const queue = event.engines.flatMap((engine) => engine.queue);
  figures.forEach((figure) => figure.show(event));
  event.engines.forEach((engine) => mapOf(engine).show(engine));
  write(byId("rows-number"), number(rows.length, Math.max(rows.length, sum(event, "running"))));
  const compiling = sum(event, "compiling");
  write(byId("queue-number"), number(queue.length, Math.max(queue.length, sum(event, "waiting")))
    + (compiling ? `, and ${count(compiling)} for their grammars` : ""));
  running.show(rows);
  waiting.show(queue);
  ended.show(event.ended);
}

const feed = new Feed(new URL("./events", import.meta.url), {
  event: show,
  state(text, isGone) {
    write(byId("state"), text);
    byId("state").classList.toggle("gone", isGone);
  },
  keyWanted(wasGiven) {
    byId("key").hidden = false;
    byId("secret").setCustomValidity("");
    if (wasGiven) {
      byId("secret").setCustomValidity("This is not one of the server's keys.");
      byId("secret").reportValidity();
    }
    byId("secret").focus();
  },
});

byId("secret").addEventListener("input", () => byId("secret").setCustomValidity(""));
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberKey(byId("secret").value);
  byId("secret").value = "";
  byId("key").hidden = true;
  feed.again();
});
feed.start();
