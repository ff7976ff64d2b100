// One message as it is shown, with what can be done about it.

import { copyButton, element, fit, iconButton, textButton, write } from "./dom.js";
import { Markdown } from "./render.js";
import { timing } from "./timing.js";
import { siblings } from "./tree.js";

const NOTES = {
  length: "The answer has reached its longest length.",
  stopped: "The answer was stopped.",
};

// page: edit(node, text), regenerate(node), retry(node), goOn(node), choose(node), say(text)
export function messageView(conversation, node, page) {
  return node.role === "user" ? new Question(conversation, node, page) : new Reply(conversation, node, page);
}

// ‹ 2 of 3 ›, where an answer or message has several versions.
function versions(conversation, node, page) {
  const all = siblings(conversation, node);
  if (all.length < 2) return [];
  const place = all.indexOf(node);
  const step = (name, label, to) => {
    const button = iconButton(name, label, () => page.choose(all[to]));
    button.disabled = all[to] === undefined;
    return button;
  };
  return [element("span", { class: "versions", role: "group", "aria-label": "Versions" },
    step("left", "Version before", place - 1), element("span", {}, `${place + 1} of ${all.length}`),
    step("right", "Next version", place + 1))];
}

class Question {
  constructor(conversation, node, page) {
    this.node = node;
    this.page = page;
    this.text = element("div", { class: "text" }, node.text);
    this.editButton = iconButton("edit", "Edit this message", () => this.edit());
    this.actions = element("div", { class: "actions" }, ...versions(conversation, node, page),
      copyButton("Copy this message", () => node.text), this.editButton);
    this.root = element("article", { class: "message user" }, element("h2", { class: "unseen" }, "You"), this.text, this.actions);
  }

  edit() {
    const area = element("textarea", { "aria-label": "Edited message", rows: "1" });
    area.value = this.node.text;
    const send = element("button", { class: "strong" }, "Send");
    const form = element("form", { class: "edit" }, area,
      element("div", { class: "buttons" }, textButton("Cancel", () => this.leave(form)), send));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = area.value.trim();
      if (text !== "") this.page.edit(this.node, text);
    });
    area.addEventListener("input", () => fit(area));
    area.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        form.requestSubmit();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        this.leave(form);
      }
    });
    this.text.replaceWith(form);
    this.actions.hidden = true;
    fit(area);
    area.focus();
  }

  leave(form) {
    form.replaceWith(this.text);
    this.actions.hidden = false;
    this.editButton.focus();
  }
}

class Reply {
  constructor(conversation, node, page) {
    this.conversation = conversation;
    this.node = node;
    this.page = page;
    this.thoughts = element("div", { class: "text" });
    this.reasoning = element("details", { class: "reasoning" }, element("summary", {}, "Reasoning"), this.thoughts);
    this.body = element("div", { class: "body" });
    this.below = element("div", { class: "below" });
    this.root = element("article", { class: "message assistant" }, element("h2", { class: "unseen" }, "Answer"),
      this.reasoning, this.body, this.below);
    this.hasRun = false;
    this.reopen();
  }

  // Whatever has come of it so far.
  show(isRunning) {
    const { node, root } = this;
    this.hasRun ||= isRunning;
    this.reasoning.hidden = !node.reasoning;
    write(this.thoughts, node.reasoning ?? "");
    root.setAttribute("aria-busy", String(isRunning));
    root.classList.toggle("waits", isRunning && node.text === "");
    this.markdown.show(node.text, !isRunning);
    this.below.replaceChildren(...(isRunning ? [] : this.ending()));
  }

  // Nothing of it is final (any more).
  reopen() {
    this.body.replaceChildren();
    this.markdown = new Markdown(this.body, (text) => {
      if (this.hasRun) this.page.say(text); // what was there before is only looked at
    });
  }

  ending() {
    const { node } = this;
    const parts = [];
    if (node.error) parts.push(this.failure(node.error));
    const note = node.finish === undefined ? "The answer was cut off when this page was left." : NOTES[node.finish];
    if (note) parts.push(element("p", { class: "note" }, note));
    parts.push(this.actions());
    if (node.stats) parts.push(timing(node));
    return parts;
  }

  failure({ words }) {
    return element("div", { class: "failure", role: "alert" }, element("p", {}, words),
      textButton("Try again", () => this.page.retry(this.node)));
  }

  actions() {
    const { node, page } = this;
    const made = element("div", { class: "actions" });
    made.append(...versions(this.conversation, node, page));
    if (node.text !== "") made.append(copyButton("Copy this answer", () => node.text));
    if (!node.error) made.append(iconButton("redo", "Another answer", () => page.regenerate(node)));
    const goesOn = node.text !== "" && !node.reasoning && node.finish !== "stop";
    if (goesOn) made.append(iconButton("on", "Go on with this answer", () => page.goOn(node)));
    return made;
  }
}
