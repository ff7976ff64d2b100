// Markdown, as models write it, to blocks. No HTML, no images: they stay text, or links.

const MAX_DEPTH = 8; // of lists and quotes inside each other
const MAX_COLUMNS = 64;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:( +|\t)(?=\S)|[ \t]*$)/;
const COLUMN = /^:?-+:?$/;

// Each with the lines that it was read from: `from` until `to`.
export function blocks(lines, depth = 0) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const block = read(lines, at, depth);
    found.push({ ...block, from: at });
    at = block.to;
  }
  return found;
}

function read(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    const text = line.slice(heading[0].length).trim();
    return { kind: "heading", level: heading[1].length, text: withoutMarks(text), to: at + 1 };
  }
  if (RULE.test(line)) return { kind: "rule", to: at + 1 };
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MAX_DEPTH && isItem(line)) return list(lines, at, depth);
  return table(lines, at) ?? paragraph(lines, at, depth);
}

function withoutMarks(text) {
  const bare = text.replace(/#{1,64}$/, "");
  return bare === "" || bare.endsWith(" ") ? bare.trim() : text;
}

// Until a fence of the same kind that is as long; as long as there is none, to the end.
function code(lines, at, [opening, marks, info]) {
  const indent = opening.length - opening.trimStart().length;
  const inside = [];
  let to = at + 1;
  for (; to < lines.length; to += 1) {
    const bare = lines[to].trim();
    if (bare.length >= marks.length && bare === marks[0].repeat(bare.length) && lines[to].search(/\S/) < 4) break;
    inside.push(stripped(lines[to], indent));
  }
  const language = info.trim().split(/\s/)[0].slice(0, 40);
  return { kind: "code", language, text: inside.join("\n"), to: Math.min(to + 1, lines.length) };
}

function quote(lines, at, depth) {
  let to = at;
  const inside = [];
  for (; to < lines.length && QUOTE.test(lines[to]); to += 1) inside.push(lines[to].replace(QUOTE, ""));
  return { kind: "quote", blocks: blocks(inside, depth + 1), to };
}

function isItem(line) {
  const found = ITEM.exec(line);
  return found !== null && found[1].length < 4 && !RULE.test(line);
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

function stripped(line, indent) {
  return line.slice(Math.min(indent, indentOf(line)));
}

// Items of one kind of mark. A mark that is two spaces further in than the item's begins a list inside it, as models
// mean it, even where markdown would want three.
function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2]);
  const items = [];
  let loose = false;
  let to = at;
  while (to < lines.length) {
    const found = ITEM.exec(lines[to]);
    if (!found || found[1].length >= first[1].length + 2 || RULE.test(lines[to]) || found[2].at(-1) !== first[2].at(-1)) break;
    const item = itemLines(lines, to, found);
    loose ||= item.blank;
    items.push(blocks(item.lines, depth + 1));
    to = item.to;
    const next = nextText(lines, to);
    if (next > to && next < lines.length && sameList(lines[next], first)) {
      loose = true;
      to = next;
    } else if (next > to) {
      break;
    }
  }
  return { kind: "list", ordered, start: ordered ? parseInt(first[2], 10) : 1, loose, items, to };
}

function sameList(line, first) {
  const found = ITEM.exec(line);
  return found !== null && found[1].length < first[1].length + 2 && found[2].at(-1) === first[2].at(-1);
}

function nextText(lines, at) {
  let next = at;
  while (next < lines.length && lines[next].trim() === "") next += 1;
  return next;
}

function itemLines(lines, at, found) {
  const space = found[3] === undefined || found[3].length > 4 ? 1 : found[3].length;
  const offset = found[1].length + found[2].length + space;
  const inside = [lines[at].slice(offset)];
  let blank = false;
  let to = at + 1;
  while (to < lines.length) {
    const next = nextText(lines, to);
    if (next === lines.length) break;
    const indent = indentOf(lines[next]);
    const isChild = indent >= offset || (indent >= found[1].length + 2 && ITEM.test(lines[next]));
    const isLazy = next === to && !isChild && !begins(lines[next]) && !isItem(lines[next]);
    if (!isChild && !isLazy) break;
    if (next > to) {
      blank ||= !ITEM.test(lines[next]);
      for (; to < next; to += 1) inside.push("");
    }
    inside.push(isLazy ? lines[to].trimStart() : stripped(lines[to], offset));
    to += 1;
  }
  return { lines: inside, blank, to };
}

function cells(line) {
  const bare = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  const found = [""];
  let ticks = false;
  for (let at = 0; at < bare.length; at += 1) {
    const letter = bare[at];
    if (letter === "`") ticks = !ticks;
    if (letter === "\\" && bare[at + 1] === "|") {
      found[found.length - 1] += "|";
      at += 1;
    } else if (letter === "|" && !ticks) {
      found.push("");
    } else {
      found[found.length - 1] += letter;
    }
  }
  return found.map((cell) => cell.trim());
}

function isTable(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !lines[at + 1].includes("-")) return false;
  const columns = cells(lines[at + 1]);
  return columns.length <= MAX_COLUMNS && columns.every((column) => COLUMN.test(column))
    && cells(lines[at]).length === columns.length;
}

function table(lines, at) {
  if (!isTable(lines, at)) return null;
  const sides = cells(lines[at + 1]).map((column) => (column.endsWith(":") ? (column.startsWith(":") ? "center" : "right") : ""));
  const rows = [];
  let to = at + 2;
  for (; to < lines.length && lines[to].includes("|"); to += 1) {
    const row = cells(lines[to]);
    rows.push(sides.map((_, place) => row[place] ?? ""));
  }
  return { kind: "table", sides, head: cells(lines[at]), rows, to };
}

// Whether a line begins something else, also without an empty line before it.
function begins(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);
}

function paragraph(lines, at, depth) {
  const inside = [lines[at].trimStart()];
  let to = at + 1;
  for (; to < lines.length; to += 1) {
    const line = lines[to];
    if (line.trim() === "" || begins(line) || (depth < MAX_DEPTH && isItem(line)) || isTable(lines, to)) break;
    inside.push(line.trimStart());
  }
  return { kind: "paragraph", text: inside.join("\n").trimEnd(), to };
}
