// What stands inside a line of markdown, as a tree: code, emphasis, links. All else is text, and so is HTML.
//
// One pass with a stack of what is open; what is never closed becomes text again. Time grows with the length, and depth
// is bounded, whatever a model writes.

const MAX_DEPTH = 24;
const SAFE = new Set(["http:", "https:", "mailto:"]);
const PLAIN = /[^\\`*_~[\]!<\nhm]+/y;
const ESCAPED = /\\([!-/:-@[-`{-~])/y;
const TICKS = /`+/y;
const RUN = /\*+|_+|~+/y;
const TARGET = /\(\s*(<[^<>\n]*>|[^\s()<>]*(?:\([^\s()]*\)[^\s()]*)*)(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const POINTED = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const BARE = /(?:https?:\/\/|mailto:)[^\s<>"'`*|\\]+/y;
const BREAK = /(?: {2,}|\\)?\n */y;
const SPACE = /\s/u;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const WORD = /[\p{L}\p{N}_]/u;

// The address as it would be opened, or null where a press on it could do more than open a page.
export function safeAddress(text) {
  try {
    const url = new URL(text);
    return SAFE.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

export function inline(text) {
  return new Inline(text).read();
}

class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.open = [{ literal: "", children: [] }]; // the outermost is never closed
    this.unclosed = new Set(); // lengths of runs of ` that no later run ends
  }

  read() {
    while (this.at < this.text.length) this.step();
    this.unwind(0);
    return this.open[0].children;
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found) this.at = pattern.lastIndex;
    return found;
  }

  step() {
    const plain = this.match(PLAIN);
    if (plain) return this.add(plain[0]);
    switch (this.text[this.at]) {
      case "\\": return this.escaped();
      case "`": return this.code();
      case "*": case "_": case "~": return this.emphasis();
      case "[": return this.bracket("[");
      case "!": return this.text[this.at + 1] === "[" ? this.bracket("![") : this.letter();
      case "]": return this.closeBracket();
      case "<": return this.pointed();
      case "\n": return this.lineBreak();
      default: return this.bare();
    }
  }

  add(text) {
    const children = this.open.at(-1).children;
    const last = children.at(-1);
    if (last?.kind === "text") last.text += text;
    else children.push({ kind: "text", text });
  }

  put(node) {
    this.open.at(-1).children.push(node);
  }

  letter() {
    this.add(this.text[this.at]);
    this.at += 1;
  }

  escaped() {
    if (this.text[this.at + 1] === "\n") return this.lineBreak();
    const found = this.match(ESCAPED);
    return found ? this.add(found[1]) : this.letter();
  }

  lineBreak() {
    this.match(BREAK);
    const last = this.open.at(-1).children.at(-1);
    if (last?.kind === "text") last.text = last.text.replace(/ {1,64}$/, "");
    this.put({ kind: "br" });
  }

  code() {
    const ticks = this.match(TICKS)[0];
    const end = this.unclosed.has(ticks.length) ? -1 : closing(this.text, this.at, ticks.length);
    if (end < 0) {
      this.unclosed.add(ticks.length);
      return this.add(ticks);
    }
    const inner = this.text.slice(this.at, end).replaceAll("\n", " ");
    const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim() !== "";
    this.put({ kind: "code", text: padded ? inner.slice(1, -1) : inner });
    this.at = end + ticks.length;
    return undefined;
  }

  emphasis() {
    const before = this.at === 0 ? " " : this.text[this.at - 1];
    const run = this.match(RUN)[0];
    const after = this.text[this.at] ?? " ";
    const [opens, closes] = flanks(run[0], before, after);
    let left = run.length;
    while (left > 0 && closes) {
      const used = this.closeRun(run[0], left);
      if (used === 0) break;
      left -= used;
    }
    if (left === 0) return;
    const literal = run[0].repeat(left);
    if (opens && this.open.length < MAX_DEPTH && !(run[0] === "~" && left !== 2)) {
      this.open.push({ literal, mark: run[0], children: [] });
    } else {
      this.add(literal);
    }
  }

  // How many marks it took.
  closeRun(mark, left) {
    const place = this.open.findLastIndex((frame) => frame.mark === mark);
    if (place <= 0 || (mark === "~" && left < 2)) return 0;
    this.unwind(place);
    const frame = this.open[place];
    const used = Math.min(left, frame.literal.length, 2);
    const kind = mark === "~" ? "del" : used === 2 ? "strong" : "em";
    const node = { kind, children: frame.children };
    if (used < frame.literal.length) {
      frame.literal = frame.literal.slice(used);
      frame.children = [node];
    } else {
      this.open.pop();
      this.put(node);
    }
    return used;
  }

  bracket(literal) {
    this.at += literal.length;
    if (this.open.length < MAX_DEPTH) this.open.push({ literal, bracket: true, children: [] });
    else this.add(literal);
  }

  closeBracket() {
    this.at += 1;
    const place = this.open.findLastIndex((frame) => frame.bracket);
    if (place <= 0) return this.add("]");
    const began = this.at;
    const target = this.match(TARGET);
    const href = target && safeAddress(target[1].replace(/^<|>$/g, ""));
    if (!href) {
      this.at = began;
      this.unwind(place - 1);
      return this.add("]");
    }
    this.unwind(place);
    const { children, literal } = this.open.pop();
    const named = children.length > 0 ? children : [{ kind: "text", text: literal === "![" ? "image" : href }];
    for (const frame of this.open) delete frame.bracket; // a link holds no links: what is open around it is text
    this.put({ kind: "link", href, children: named });
    return undefined;
  }

  pointed() {
    const found = this.match(POINTED);
    const href = found && safeAddress(found[1]);
    if (href) return this.put({ kind: "link", href, children: [{ kind: "text", text: found[1] }] });
    return this.add(found ? found[0] : this.text[this.at++]);
  }

  bare() {
    const isInside = this.at > 0 && WORD.test(this.text[this.at - 1]);
    const isNamed = this.open.some((frame) => frame.bracket); // [text that may be an address](of a link)
    const began = this.at;
    const found = isInside || isNamed ? null : this.match(BARE);
    if (!found) return this.letter();
    const shown = withoutEnd(found[0]);
    const href = safeAddress(shown);
    this.at = began + (href ? shown.length : 1);
    if (!href) return this.add(this.text[began]);
    return this.put({ kind: "link", href, children: [{ kind: "text", text: shown }] });
  }

  // What is open above this place becomes text again.
  unwind(place) {
    while (this.open.length > place + 1) {
      const { literal, children } = this.open.pop();
      this.add(literal);
      for (const child of children) {
        if (child.kind === "text") this.add(child.text);
        else this.put(child);
      }
    }
  }
}

function closing(text, from, length) {
  const ticks = /`+/g;
  ticks.lastIndex = from;
  for (let found = ticks.exec(text); found; found = ticks.exec(text)) {
    if (found[0].length === length) return found.index;
  }
  return -1;
}

// Whether a run of marks may open, and whether it may close.
function flanks(mark, before, after) {
  const spaceBefore = SPACE.test(before);
  const spaceAfter = SPACE.test(after);
  const signBefore = PUNCTUATION.test(before);
  const signAfter = PUNCTUATION.test(after);
  const left = !spaceAfter && (!signAfter || spaceBefore || signBefore);
  const right = !spaceBefore && (!signBefore || spaceAfter || signAfter);
  return mark === "_" ? [left && (!right || signBefore), right && (!left || signAfter)] : [left, right];
}

// Signs that end a sentence rather than an address.
function withoutEnd(address) {
  let shown = address.replace(/[.,;:!?\]]{1,16}$/, "");
  let surplus = shown.split(")").length - shown.split("(").length;
  for (; surplus > 0 && shown.endsWith(")"); surplus -= 1) shown = shown.slice(0, -1);
  return shown;
}
