// Elements whose content is never markup, icons, the clipboard, and numbers as people read them.

const SVG = "http://www.w3.org/2000/svg";
const HEARD = 12; // of what was said, that is still there to be read
const ICONS = {
  bin: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v6M14 11v6",
  check: "M5 13l4 4L19 7",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  left: "M15 5l-7 7 7 7",
  on: "M6 5l7 7-7 7M13 5l7 7-7 7",
  redo: "M20 12a8 8 0 1 1-2.3-5.7L20 8.6M20 3v5.6h-5.6",
  right: "M9 5l7 7-7 7",
  send: "M12 20V4M5 11l7-7 7 7",
  stop: "M7 7h10v10H7z",
};

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function icon(name) {
  const made = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  for (const [key, value] of [["viewBox", "0 0 24 24"], ["aria-hidden", "true"], ["class", "icon"]]) {
    made.setAttribute(key, value);
  }
  path.setAttribute("d", ICONS[name]);
  made.append(path);
  return made;
}

// With an icon and a name that is read out, and shown where the pointer rests.
export function iconButton(name, label, press) {
  const made = element("button", { type: "button", class: "quiet", "aria-label": label, title: label }, icon(name));
  made.addEventListener("click", press);
  return made;
}

export function textButton(label, press, kind = "") {
  const made = element("button", { type: "button", class: kind }, label);
  made.addEventListener("click", press);
  return made;
}

// A button that says for a moment that it has copied.
export function copyButton(label, textOf) {
  const made = iconButton("copy", label, async () => {
    const worked = await copy(textOf());
    made.replaceChildren(icon(worked ? "check" : "copy"));
    say(worked ? "Copied." : "The browser does not let this page copy.");
    setTimeout(() => made.replaceChildren(icon("copy")), 1500);
  });
  return made;
}

async function copy(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // not allowed: the old way may be
    }
  }
  const before = document.activeElement;
  const area = element("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const worked = document.execCommand("copy"); // where a page is not served over TLS, the only way
  area.remove();
  before?.focus();
  return worked;
}

// To those who listen instead of looking: one after another, for a later one does not silence those before it.
export function say(text) {
  const log = byId("says");
  while (log.children.length >= HEARD) log.firstElementChild.remove();
  log.append(element("p", {}, text));
}

// An element is only touched where it changes: a reader's place in the page, and its selection, stay.
export function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

export function count(value) {
  return Math.round(value).toLocaleString("en");
}

export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

export function rate(value) {
  return value < 10 ? value.toFixed(1) : count(value);
}

export function ms(value) {
  if (value >= 1000) return `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)} s`;
  return value < 10 ? `${value.toFixed(1)} ms` : `${count(value)} ms`;
}
