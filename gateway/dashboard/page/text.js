// Numbers as people read them, and elements whose content is never markup.

export const NOTHING = "–";

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function count(value) {
  return value == null ? NOTHING : Math.round(value).toLocaleString("en");
}

export function rate(value) {
  if (value == null) return NOTHING;
  return value < 10 ? value.toFixed(1) : count(value);
}

export function ms(value) {
  if (value == null) return NOTHING;
  if (value >= 1000) return `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)} s`;
  return value < 10 ? `${value.toFixed(1)} ms` : `${count(value)} ms`;
}

export function seconds(value) {
  if (value == null) return NOTHING;
  if (value >= 120) return `${Math.floor(value / 60)} min`;
  return value < 10 ? `${value.toFixed(1)} s` : `${Math.round(value)} s`;
}

export function percent(part, whole) {
  return whole > 0 ? `${Math.round((100 * part) / whole)} %` : NOTHING;
}

// An element is only touched where it changes: a reader's place in the page, and its selection, stay.
export function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}
