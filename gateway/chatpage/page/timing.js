// How fast an answer came, and where its time went: a line, a bar with its parts named, and a table for who opens it.

import { count, element, ms, plural, rate } from "./dom.js";

const COLOURS = 8;
const LEAST_SHARE = 0.005; // that can be seen in the bar

export function timing({ stats, seed, model, request }) {
  const parts = summary(stats);
  const head = element("summary", {}, element("span", { class: "speed" }, parts.join(" · ")));
  const causes = stats.causes.filter((cause) => cause.ms > 0);
  if (causes.length > 0) head.append(bar(causes, stats.total_ms));
  const facts = [["model", model], ["prompt", promptOf(stats)], ["seed", seed], ["request", request]];
  const made = element("details", { class: "timing" }, head);
  made.append(table(causes, stats.total_ms), list(facts.filter(([, value]) => value)));
  return made;
}

function summary({ generated, total_ms: total, ttft_ms: ttft }) {
  const parts = generated === undefined ? [] : [plural(generated, "token")];
  if (total === undefined) return parts;
  const speed = tokensPerSecond(generated, total, ttft);
  if (speed !== null) parts.push(`${rate(speed)} tok/s`);
  if (ttft != null) parts.push(`first after ${ms(ttft)}`);
  return [...parts, `${ms(total)} in all`];
}

// After the first token, which waits for the prompt.
export function tokensPerSecond(generated, total, ttft) {
  if (!(generated > 1) || ttft == null || total <= ttft) return null;
  return (1000 * (generated - 1)) / (total - ttft);
}

function promptOf({ prompt, cached }) {
  if (prompt === undefined) return "";
  return plural(prompt, "token") + (cached > 0 ? `, ${count(cached)} of them from the cache` : "");
}

function bar(causes, total) {
  const label = causes.map(({ cause, ms: each }) => `${cause} ${ms(each)}`).join(", ");
  const made = element("span", { class: "bar", role: "img", "aria-label": `Where the time went: ${label}` });
  causes.forEach(({ cause, ms: each }, place) => {
    if (each < LEAST_SHARE * total) return;
    const part = element("span", { class: `cause-${place % COLOURS}`, title: `${cause} ${ms(each)}` });
    part.style.setProperty("--share", `${each}`);
    made.append(part);
  });
  return made;
}

function table(causes, total) {
  const rows = causes.map(({ cause, ms: each }, place) => {
    const name = element("th", { scope: "row" }, element("span", { class: `swatch cause-${place % COLOURS}` }), cause);
    const share = `${Math.round((100 * each) / total)} %`;
    return element("tr", {}, name, element("td", {}, ms(each)), element("td", {}, share));
  });
  return element("table", {}, element("tbody", {}, ...rows));
}

function list(facts) {
  return element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}
