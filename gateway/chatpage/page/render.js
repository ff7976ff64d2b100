// Blocks of markdown as elements. Text comes in through text nodes alone, so that none of it is ever markup.

import { copyButton, element } from "./dom.js";
import { inline } from "./inline.js";
import { blocks } from "./markdown.js";

const OPEN_BLOCKS = 2; // at the end, that the next line may still change
const TAGS = { em: "em", strong: "strong", del: "del" };
const LOWEST = 6;
const ABOVE = 2; // headings of the page itself

export class Markdown {
  // ended(text): a block is as it stays
  constructor(root, ended = () => {}) {
    this.root = root;
    this.ended = ended;
    this.from = 0; // of the text, until which nothing changes any more
    this.open = []; // [source, block, element], in order
  }

  // The whole text so far, which only grows.
  show(text, isWhole) {
    const lines = text.slice(this.from).split("\n");
    const found = blocks(lines);
    const before = this.open;
    this.open = found.map((block, place) => this.place(block, lines, before[place]));
    for (const [, , stale] of before.slice(found.length)) stale.remove();
    const numEnded = isWhole ? found.length : Math.max(0, found.length - OPEN_BLOCKS);
    for (const [, , shown] of this.open.slice(0, numEnded)) this.ended(shown.textContent);
    if (numEnded === 0) return;
    const end = isWhole ? lines.length : found[numEnded].from;
    this.from += lines.slice(0, end).reduce((length, line) => length + line.length + 1, 0);
    this.open = this.open.slice(numEnded);
  }

  place(block, lines, before) {
    const source = lines.slice(block.from, block.to).join("\n");
    if (before === undefined) {
      const made = blockElement(block);
      this.root.append(made);
      return [source, block, made];
    }
    const [was, old, shown] = before;
    if (was === source && old.kind === block.kind) return before;
    if (old.kind === "code" && block.kind === "code" && old.language === block.language) {
      extend(shown.querySelector("code"), block.text);
      return [source, block, shown];
    }
    const made = blockElement(block);
    shown.replaceWith(made);
    return [source, block, made];
  }
}

// A selection in a block of code that grows stays.
function extend(target, text) {
  const node = target.firstChild;
  if (node !== null && text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else target.textContent = text;
}

function blockElement(block) {
  switch (block.kind) {
    case "code": return codeElement(block);
    case "heading": return element(`h${Math.min(LOWEST, block.level + ABOVE)}`, {}, ...spans(block.text));
    case "rule": return element("hr");
    case "quote": return element("blockquote", {}, ...block.blocks.map(blockElement));
    case "list": return listElement(block);
    case "table": return tableElement(block);
    default: return element("p", {}, ...spans(block.text));
  }
}

function codeElement({ language, text }) {
  const shown = element("code", {}, text);
  const label = language || "text";
  const head = element("div", { class: "code-head" }, element("span", {}, label),
    copyButton("Copy this code", () => shown.textContent));
  const scrolls = element("pre", { tabindex: "0", role: "group", "aria-label": `Code, ${label}` }, shown);
  return element("div", { class: "code" }, head, scrolls);
}

function listElement({ ordered, start, loose, items }) {
  const made = element(ordered ? "ol" : "ul");
  if (ordered && start !== 1) made.start = start;
  for (const item of items) made.append(element("li", {}, ...item.flatMap((block) => itemParts(block, loose))));
  return made;
}

function itemParts(block, loose) {
  if (block.kind !== "paragraph") return [blockElement(block)];
  const text = block.text.replace(/^\[ \] /, "☐ ").replace(/^\[[xX]\] /, "☑ ");
  return loose ? [element("p", {}, ...spans(text))] : spans(text);
}

function tableElement({ sides, head, rows }) {
  const cell = (name, text, place, more) => element(name, { ...more, class: sides[place] }, ...spans(text));
  const line = (name, row, more = {}) => element("tr", {}, ...row.map((text, place) => cell(name, text, place, more)));
  const table = element("table", {}, element("thead", {}, line("th", head, { scope: "col" })),
    element("tbody", {}, ...rows.map((row) => line("td", row))));
  return element("div", { class: "scrolls", tabindex: "0", role: "group", "aria-label": "Table" }, table);
}

function spans(text) {
  return inline(text).map(spanElement);
}

function spanElement(node) {
  switch (node.kind) {
    case "text": return document.createTextNode(node.text);
    case "code": return element("code", {}, node.text);
    case "br": return element("br");
    case "link":
      return element("a", { href: node.href, title: node.href, target: "_blank", rel: "noopener noreferrer nofollow" },
        ...node.children.map(spanElement));
    default: return element(TAGS[node.kind], {}, ...node.children.map(spanElement));
  }
}
