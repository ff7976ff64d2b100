// Tables whose rows stay the same elements while their request lives, so that a focus is not lost twice a second.

import { count, element, ms, NOTHING, percent, seconds, write } from "./text.js";

const choice = (row) => (row.choice > 0 ? `${row.id} #${row.choice + 1}` : row.id);
const phaseShare = (row) => (row.phase === "prefill"
  ? [row.computed_tokens, row.prompt_tokens] : [row.generated_tokens, row.max_tokens]);

// Of a column: title, what it says of a row, class names
export const RUNNING = [
  ["request", null, ""],
  ["phase", (row) => row.phase, ""],
  ["done", phaseShare, ""],
  ["age", (row) => seconds(row.age_s), "number"],
  ["prompt", (row) => count(row.prompt_tokens), "number wide"],
  ["cached", (row) => count(row.cached_tokens), "number wide"],
  ["blocks", (row) => count(row.blocks), "number wide"],
  ["slot", (row) => count(row.slot), "number wide"],
  ["priority", (row) => count(row.priority), "number wide"],
  ["preempted", (row) => count(row.preemptions), "number wide"],
  ["endpoint", (row) => row.endpoint ?? NOTHING, "wide"],
];
export const WAITING = [
  ["request", null, ""],
  ["tokens", (row) => count(row.tokens), "number"],
  ["has waited", (row) => seconds(row.waited_s), "number"],
  ["will wait", (row) => (row.waits_for_choice ? "for a choice" : seconds(row.predicted_s)), "number"],
  ["priority", (row) => count(row.priority), "number wide"],
  ["preempted", (row) => count(row.preemptions), "number wide"],
  ["endpoint", (row) => row.endpoint ?? NOTHING, "wide"],
];
export const ENDED = [
  ["request", null, ""],
  ["outcome", (row) => row.outcome ?? NOTHING, ""],
  ["tokens", (row) => count(row.generated_tokens), "number"],
  ["total", (row) => ms(row.total_ms), "number"],
  ["first token", (row) => ms(row.ttft_ms), "number wide"],
  ["prompt", (row) => count(row.prompt_tokens), "number wide"],
  ["cached", (row) => percent(row.cached_tokens, row.prompt_tokens), "number wide"],
  ["ago", (row) => seconds(row.ago_s), "number wide"],
  ["endpoint", (row) => row.endpoint, "wide"],
];

export class Table {
  // open(id): a request's button was pressed
  constructor(table, columns, none, open) {
    this.columns = columns;
    this.open = open;
    this.lines = new Map();
    const heads = columns.map(([title, , kind]) => element("th", { scope: "col", class: kind }, title));
    this.body = element("tbody");
    this.none = element("tr", {}, element("td", { class: "none", colspan: columns.length }, none));
    table.append(element("thead", {}, element("tr", {}, ...heads)), this.body);
  }

  show(rows) {
    const before = this.lines;
    this.lines = new Map();
    rows.forEach((row, place) => {
      const known = row.id === null ? `${place}` : `${row.id} ${row.choice ?? ""}`;
      const key = this.lines.has(known) ? `${known} ${place}` : known; // ids come from clients: twice, perhaps
      this.lines.set(key, before.get(key) ?? this.line(row));
      this.fill(this.lines.get(key), row);
    });
    const wanted = rows.length > 0 ? [...this.lines.values()] : [this.none];
    for (const line of [...this.body.children]) if (!wanted.includes(line)) line.remove();
    wanted.forEach((line, place) => {
      if (this.body.children[place] !== line) this.body.insertBefore(line, this.body.children[place] ?? null);
    });
  }

  line(row) {
    const cells = this.columns.map(([, , kind]) => element("td", { class: kind }));
    if (row.id !== null) {
      const name = choice(row);
      const button = element("button", { type: "button", title: name, "aria-label": `Timeline of ${name}` }, name);
      button.addEventListener("click", () => this.open(row.id));
      cells[0].append(button);
    } else {
      cells[0].append(NOTHING);
    }
    return element("tr", {}, ...cells);
  }

  fill(line, row) {
    line.className = row.phase ?? "";
    this.columns.forEach(([, told], place) => {
      if (told === null) return;
      const said = told(row);
      if (Array.isArray(said)) bar(line.children[place], ...said);
      else write(line.children[place], said);
    });
  }
}

function bar(cell, part, whole) {
  if (cell.children.length === 0) cell.append(element("span", { class: "share" }), element("span"));
  const [share, text] = cell.children;
  share.style.setProperty("--done", `${whole > 0 ? Math.min(100, (100 * part) / whole) : 0}%`);
  write(text, `${count(part)} / ${count(whole)}`);
}
