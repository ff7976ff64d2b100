// Puts the page together: what its buttons and keys do.

import { helpLines, run } from "./commands.js";
import { byId, element, fit } from "./dom.js";
import { Page } from "./page.js";
import { forgetKey } from "./store.js";

// Enter, or the button.
function submit(page) {
  const { input } = page;
  const raw = input.value;
  if (raw.trim() === "" || page.running) return;
  input.value = "";
  fit(input);
  hint("");
  if (!raw.startsWith("/")) return page.send(raw.trim());
  const told = run(raw, {
    settings: page.conversation.settings,
    set: (name, value) => page.set(name, value),
    models: () => page.models,
    model: () => page.model(),
    theme: () => page.theme(),
    setTheme: (name) => page.setTheme(name),
    newChat: () => page.newChat(),
    retry: () => page.retry(),
  });
  if (told !== null) page.console(told);
  return undefined;
}

function hint(text) {
  const lines = text.startsWith("/") && !text.includes("\n") ? helpLines(text.split(" ")[0].toLowerCase()) : [];
  byId("hint").replaceChildren(...lines.map(([usage, about]) => element("div", {}, element("b", {}, usage), ` ${about}`)));
  byId("hint").hidden = lines.length === 0;
}

function listen(page) {
  const { input } = page;
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (page.running) page.stop();
    else submit(page);
    input.focus();
  });
  input.addEventListener("input", () => {
    fit(input);
    hint(input.value);
  });
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      submit(page);
    } else if (event.key === "ArrowUp" && input.value === "" && !page.running) {
      const last = [...page.views].findLast(([node]) => node.role === "user");
      if (last === undefined) return;
      event.preventDefault();
      last[1].edit();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || document.querySelector("dialog[open]") !== null) return;
    if (event.key === "Escape") {
      if (page.sidebar.isOpen) page.sidebar.toggle(false);
      else page.stop();
    } else if ((event.ctrlKey || event.metaKey) && event.shiftKey && ["n", "o"].includes(event.key.toLowerCase())) {
      event.preventDefault();
      page.newChat();
    }
  });
  byId("new").addEventListener("click", () => page.newChat());
  byId("model").addEventListener("change", (event) => page.set("model", event.target.value));
  byId("open-settings").addEventListener("click", () => page.settings.open(page.conversation.settings, page.defaults));
  byId("set-theme").addEventListener("change", (event) => page.setTheme(event.target.value));
  byId("set-key").addEventListener("click", () => {
    byId("settings").close();
    page.askForKey();
  });
  byId("forget-key").addEventListener("click", () => {
    forgetKey();
    byId("settings").close();
    page.notice("The key is forgotten.");
  });
  byId("key").addEventListener("submit", (event) => {
    event.preventDefault();
    const secret = byId("secret").value;
    byId("secret").value = "";
    page.takeKey(secret, byId("keep-key").checked);
  });
  byId("down").addEventListener("click", () => page.toEnd());
  page.thread.addEventListener("scroll", () => page.showDown());
  window.addEventListener("pagehide", () => page.leave());
  window.addEventListener("pageshow", () => { page.isLeft = false; });
  window.addEventListener("storage", () => otherTab(page));
}

// Another tab has changed what is kept.
function otherTab(page) {
  page.showList();
  const kept = page.store.load(page.conversation.id);
  if (kept !== null && !page.running && kept.updated > page.conversation.updated) page.show(kept);
}

const page = new Page();
listen(page);
page.start();
