// The list of conversations: open, rename, delete.

import { byId, element, iconButton } from "./dom.js";

export class Sidebar {
  // told: open(id), rename(id, title), remove(id)
  constructor(told) {
    this.told = told;
    this.list = byId("chats");
    byId("menu").addEventListener("click", () => this.toggle(!this.isOpen));
    byId("shade").addEventListener("click", () => this.toggle(false));
  }

  get isOpen() {
    return document.body.classList.contains("side-open");
  }

  // On narrow screens, where it lies over the page.
  toggle(open) {
    document.body.classList.toggle("side-open", open);
    byId("menu").setAttribute("aria-expanded", String(open));
    if (open) byId("new").focus();
    else if (document.activeElement === document.body || byId("side").contains(document.activeElement)) byId("menu").focus();
  }

  show(entries, current, running) {
    if (this.list.querySelector("form") !== null) return; // a name is being typed
    const focused = document.activeElement?.dataset?.chat;
    this.list.replaceChildren(...entries.map((entry) => this.line(entry, entry.id === current, running.has(entry.id))));
    byId("no-chats").hidden = entries.length > 0;
    if (focused) this.list.querySelector(`[data-chat="${CSS.escape(focused)}"]`)?.focus();
  }

  line({ id, title }, isCurrent, isRunning) {
    const open = element("button", { type: "button", class: "chat", "data-chat": id, title }, title);
    if (isCurrent) open.setAttribute("aria-current", "page");
    if (isRunning) open.append(element("span", { class: "running", role: "img", "aria-label": ", an answer is being written" }));
    open.addEventListener("click", () => this.told.open(id));
    const line = element("li", {}, open,
      iconButton("edit", `Rename ${title}`, () => this.rename(line, id, title)),
      iconButton("bin", `Delete ${title}`, () => this.told.remove(id)));
    return line;
  }

  rename(line, id, title) {
    const input = element("input", { "aria-label": "New name", maxlength: "100" });
    input.value = title;
    const form = element("form", {}, input);
    let isOver = false;
    const end = (wanted) => {
      if (isOver) return;
      isOver = true;
      form.remove();
      this.told.rename(id, wanted || title);
      this.list.querySelector(`[data-chat="${CSS.escape(id)}"]`)?.focus();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      end(input.value.trim());
    });
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      end(title);
    });
    input.addEventListener("blur", () => end(input.value.trim()));
    line.replaceChildren(form);
    input.select();
    input.focus();
  }
}
