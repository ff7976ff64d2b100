// Lines that begin with a slash: to set things without leaving the keyboard.

import { fieldOf, numberOf } from "./settings.js";

const NUMBERS = { "/temperature": "temperature", "/topp": "top_p", "/topk": "top_k", "/maxtokens": "max_tokens", "/seed": "seed" };
const THEMES = ["auto", "light", "dark"];
const HELP = [
  ["/temperature [0 to 2]", "how boldly words are drawn"],
  ["/topk [number]", "only so many of the likeliest words; 0: all"],
  ["/topp [0 to 1]", "only the likeliest words that sum to this"],
  ["/maxtokens [number]", "how long an answer may be"],
  ["/seed [number]", "the same seed draws the same answer"],
  ["/system [text]", "what the model is told before the conversation"],
  ["/model [name]", "which model answers"],
  ["/retry", "another answer to the last message"],
  ["/clear, /new", "a new chat; this one stays in the list"],
  ["/theme [auto, light, dark]", "the colours"],
  ["/help", "this list"],
];

export function helpLines(begin = "/") {
  return HELP.filter(([usage]) => usage.split(", ").some((each) => each.split(" ")[0].startsWith(begin)));
}

// What to answer, or null where the page has done it. `page` is what commands may do to it.
export function run(line, page) {
  const [name, ...words] = line.trim().split(/\s+/);
  const command = name.toLowerCase().replaceAll("_", "");
  const given = line.trim().slice(name.length).trim();
  if (command in NUMBERS) return setNumber(fieldOf(NUMBERS[command]), given, page);
  switch (command) {
    case "/help": return helpLines().map(([usage, about]) => `${usage} – ${about}`).join("\n")
      + "\nA command alone says what is set; with “default” it is left to the server.";
    case "/clear": case "/new": return page.newChat();
    case "/retry": return page.retry();
    case "/system": return setSystem(given, page);
    case "/model": return setModel(words[0], page);
    case "/theme": return setTheme(words[0], page);
    default: return `There is no command ${name}; /help lists them. To send such a line, begin it with a space.`;
  }
}

function setNumber(field, given, page) {
  if (given === "") {
    const value = page.settings[field.name];
    return `${field.label}: ${value ?? "the server's default"}`;
  }
  const value = given === "default" ? undefined : numberOf(field, given);
  if (typeof value === "string") return value;
  page.set(field.name, value);
  return `${field.label} is ${value ?? "the server's default"} now.`;
}

function setSystem(given, page) {
  if (given === "") return page.settings.system ? `System prompt: ${page.settings.system}` : "There is no system prompt.";
  page.set("system", given === "default" ? undefined : given);
  return given === "default" ? "There is no system prompt now." : "The system prompt is set.";
}

function setModel(name, page) {
  const names = page.models();
  if (name === undefined) return `Model: ${page.model()}. There ${names.length === 1 ? "is" : "are"}: ${names.join(", ")}`;
  if (!names.includes(name)) return `There is no model ${name}. There ${names.length === 1 ? "is" : "are"}: ${names.join(", ")}`;
  page.set("model", name);
  return `${name} answers now.`;
}

function setTheme(name, page) {
  if (name === undefined) return `Theme: ${page.theme()}`;
  if (!THEMES.includes(name)) return `The theme must be one of ${THEMES.join(", ")}.`;
  page.setTheme(name);
  return `The theme is ${name} now.`;
}
