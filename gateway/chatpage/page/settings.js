// What a conversation's answers are asked for with. What is not set is left to the server and its model.

import { byId } from "./dom.js";

// name, words, least, most, whole numbers only
export const FIELDS = [
  { name: "temperature", label: "Temperature", least: 0, most: 2 },
  { name: "top_p", label: "Top p", least: 0, most: 1 },
  { name: "top_k", label: "Top k", least: 0, most: 1_000_000, whole: true },
  { name: "max_tokens", label: "Max tokens", least: 1, most: 10_000_000, whole: true },
  { name: "seed", label: "Seed", least: 0, most: Number.MAX_SAFE_INTEGER, whole: true },
];

export const fieldOf = (name) => FIELDS.find((field) => field.name === name);

// A number, undefined where there is none, or a text that says what is wrong.
export function numberOf(field, text) {
  if (text.trim() === "") return undefined;
  const value = Number(text);
  if (Number.isNaN(value) || value < field.least || value > field.most || (field.whole && !Number.isInteger(value))) {
    const most = field.most > 1000 ? ` or more` : ` to ${field.most}`;
    return `${field.label} must be ${field.whole ? "a whole number, " : ""}${field.least}${most}.`;
  }
  return value;
}

// The dialog; changed(name, value) as soon as something is.
export class SettingsDialog {
  constructor(changed) {
    this.dialog = byId("settings");
    this.changed = changed;
    for (const field of FIELDS) {
      const input = byId(`set-${field.name}`);
      input.addEventListener("change", () => this.take(field, input));
      input.addEventListener("input", () => input.setCustomValidity(""));
    }
    byId("set-system").addEventListener("change", (event) => changed("system", event.target.value.trim() || undefined));
  }

  take(field, input) {
    const value = input.validity.badInput ? `${field.label} must be a number.` : numberOf(field, input.value);
    if (typeof value === "string") {
      input.setCustomValidity(value);
      input.reportValidity();
      return;
    }
    this.changed(field.name, value);
  }

  // defaults: what holds where a field is empty, as far as it is known.
  open(settings, defaults) {
    for (const { name } of FIELDS) {
      byId(`set-${name}`).value = settings[name] ?? "";
      byId(`set-${name}`).placeholder = defaults[name] ?? "";
      byId(`set-${name}`).setCustomValidity("");
    }
    byId("set-system").value = settings.system ?? "";
    this.dialog.showModal();
  }
}
