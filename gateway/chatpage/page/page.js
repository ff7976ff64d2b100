// Which conversation is shown, which answers are under way, and what is said beside them.

import { Answer } from "./answer.js";
import { Failure, models } from "./api.js";
import { byId, element, icon, plural, say, textButton, write } from "./dom.js";
import { messageView } from "./message.js";
import { SettingsDialog } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store, isKept, key, local, rememberKey } from "./store.js";
import { ROOT, add, newConversation, path } from "./tree.js";

const NEAR_PX = 80; // of the end: then the end is followed
const SAVE_MS = 2000;
const TITLE_CHARS = 60;
const THEME = "headrace-theme";
const STARTERS = [
  "Explain how a water wheel works.",
  "Write a short poem about morning light.",
  "Give me three ideas for a rainy day, as a list.",
];

export class Page {
  constructor() {
    this.store = new Store(local);
    this.models = [];
    this.defaults = {}; // of this page, where the server has others for it than for the API
    this.plain = new Set(); // models without a chat template
    this.runs = new Map(); // the answer under way, by conversation
    this.views = new Map(); // of shown messages, by node
    this.frame = 0;
    this.savedAt = 0;
    this.isLeft = false;
    this.thread = byId("thread");
    this.input = byId("input");
    this.sidebar = new Sidebar({
      open: (id) => this.open(id),
      rename: (id, title) => this.rename(id, title),
      remove: (id) => this.remove(id),
    });
    this.settings = new SettingsDialog((name, value) => this.set(name, value));
    const [newest] = this.store.list();
    this.conversation = newConversation((newest && this.store.load(newest.id)?.settings) ?? {});
  }

  start() {
    this.showTheme();
    const wanted = decodeURIComponent(location.hash.slice(1));
    this.show((wanted && this.store.load(wanted)) || this.conversation);
    if (!isKept) this.notice("This browser keeps nothing for this page: conversations end with it.");
    this.loadModels().catch((error) => this.cannotLoad(error));
    this.input.focus();
  }

  get running() {
    return this.runs.get(this.conversation.id);
  }

  // models

  async loadModels() {
    const found = await models();
    this.models = found.map(({ id }) => id);
    this.defaults = found[0]?.page_defaults ?? {};
    byId("key").hidden = true;
    this.showModel();
  }

  cannotLoad(error) {
    if (!(error instanceof Failure)) throw error;
    if (error.kind === "key") this.askForKey();
    else this.notice(error.message, ["Try again", () => this.loadModels().catch((again) => this.cannotLoad(again))]);
  }

  model() {
    const { model } = this.conversation.settings;
    return this.models.includes(model) ? model : this.models[0];
  }

  showModel() {
    const picker = byId("model");
    picker.replaceChildren(...this.models.map((name) => element("option", {}, name)));
    picker.disabled = this.models.length === 0;
    if (this.models.length > 0) picker.value = this.model();
    const tells = this.plain.has(this.model());
    byId("plain").hidden = !tells;
    if (tells) write(byId("plain"), `${this.model()} has no chat template: it continues text rather than answering. `
      + "What you write is sent as it stands, and the model goes on from its end.");
  }

  // conversations

  show(conversation) {
    this.conversation = conversation;
    history.replaceState(null, "", conversation.nodes.length > 0 ? `#${encodeURIComponent(conversation.id)}` : location.pathname);
    document.title = conversation.title ? `${conversation.title} · headrace` : "headrace";
    this.showModel();
    this.showThread();
    this.showList();
    this.toEnd();
  }

  showThread() {
    const nodes = path(this.conversation);
    this.views = new Map(nodes.map((node) => [node, messageView(this.conversation, node, this)]));
    this.thread.replaceChildren(...(nodes.length > 0 ? [...this.views.values()].map((view) => view.root) : [welcome(this)]));
    for (const node of nodes) this.views.get(node).show?.(this.running?.node === node);
    if (document.activeElement === document.body) this.thread.focus({ preventScroll: true }); // what was pressed is gone
    this.showButton();
  }

  showList() {
    this.sidebar.show(this.store.list(), this.conversation.id, this.runs);
  }

  showButton() {
    const [name, label] = this.running ? ["stop", "Stop (Escape)"] : ["send", "Send (Enter)"];
    const button = byId("send");
    if (button.dataset.shows === name) return;
    button.dataset.shows = name;
    button.replaceChildren(icon(name));
    button.setAttribute("aria-label", label.split(" ")[0]);
    button.title = label;
  }

  open(id) {
    this.sidebar.toggle(false);
    const found = this.runs.get(id)?.conversation ?? this.store.load(id);
    if (found === null) return this.notice("This conversation cannot be read any more.");
    return this.show(found);
  }

  newChat() {
    this.sidebar.toggle(false);
    if (this.conversation.nodes.length > 0) this.show(newConversation(this.conversation.settings));
    else this.showThread();
    this.input.focus();
    return null;
  }

  rename(id, title) {
    const conversation = this.runs.get(id)?.conversation ?? (id === this.conversation.id ? this.conversation : null);
    if (conversation === null) this.store.rename(id, title);
    else {
      conversation.title = title;
      this.save(conversation);
    }
    this.showList();
  }

  remove(id) {
    this.runs.get(id)?.stop();
    const gone = id === this.conversation.id ? this.conversation : this.store.load(id);
    this.store.remove(id);
    if (gone === null) return this.showList();
    gone.isRemoved = true;
    if (id === this.conversation.id) this.show(newConversation(this.conversation.settings));
    this.showList();
    return this.notice(`“${gone.title}” is deleted.`, ["Undo", () => {
      delete gone.isRemoved;
      this.save(gone);
      this.show(gone);
    }]);
  }

  save(conversation) {
    if (conversation.nodes.length === 0 || conversation.isRemoved || this.isLeft) return;
    conversation.updated = Date.now();
    this.savedAt = conversation.updated;
    if (!this.store.save(conversation)) this.notice("This conversation is too long for the browser to keep: its end will be lost when the page is left.");
  }

  set(name, value) {
    if (value === undefined) delete this.conversation.settings[name];
    else this.conversation.settings[name] = value;
    this.save(this.conversation);
    this.showModel();
  }

  // messages

  send(text) {
    const last = path(this.conversation).at(-1);
    const node = add(this.conversation, last?.id ?? ROOT, "user", text);
    if (this.conversation.title === "") this.conversation.title = titleOf(text);
    this.answerTo(node);
  }

  edit(node, text) {
    if (this.running) return;
    this.answerTo(add(this.conversation, node.parent, "user", text));
  }

  regenerate(node) {
    const asked = this.conversation.nodes[node.parent - 1];
    if (!this.running && asked) this.answerTo(asked);
  }

  retry(node = path(this.conversation).at(-1)) {
    if (node === undefined || this.running) return node ? null : "There is nothing to answer yet.";
    if (node.role === "user") this.answerTo(node);
    else if (node.text === "") this.begin(node);
    else this.regenerate(node);
    return null;
  }

  goOn(node) {
    if (this.running) return;
    this.views.get(node)?.reopen();
    this.begin(node);
  }

  choose(node) {
    if (this.running) return;
    this.conversation.chosen[node.parent] = node.id;
    this.save(this.conversation);
    this.showThread();
    this.views.get(node).root.querySelector(".versions button:enabled").focus();
  }

  answerTo(asked) {
    this.begin(add(this.conversation, asked.id, "assistant", ""));
  }

  async begin(node) {
    const { conversation } = this;
    const answer = new Answer(conversation, node, this.model(), this.plain, this.defaults);
    answer.changed = () => this.schedule(conversation);
    this.runs.set(conversation.id, answer);
    this.save(conversation);
    this.show(conversation);
    say("The answer is being written.");
    try {
      if (this.models.length === 0) await this.loadModels();
      answer.model = this.model();
      await answer.run();
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      Object.assign(node, { finish: "error", error: { kind: error.kind, words: error.message } });
    } finally {
      this.runs.delete(conversation.id);
      this.save(conversation);
    }
    this.ended(conversation, node);
  }

  ended(conversation, node) {
    this.showList();
    if (node.error?.kind === "key") this.askForKey();
    if (conversation !== this.conversation) return;
    this.showModel();
    this.draw(() => this.views.get(node)?.show(false));
    this.showButton();
    if (node.error) return;
    const length = node.stats?.generated === undefined ? "" : ` It has ${plural(node.stats.generated, "token")}.`;
    say(node.finish === "stopped" ? "The answer was stopped." : `The answer is complete.${length}`);
  }

  // What has come is drawn once a frame, however many pieces it came in.
  schedule(conversation) {
    if (Date.now() - this.savedAt > SAVE_MS) this.save(conversation);
    if (conversation !== this.conversation || this.frame !== 0) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      const node = this.running?.node;
      if (node) this.draw(() => this.views.get(node)?.show(true));
    });
  }

  // What becomes of answers from here on is the browser's doing, and not kept.
  leave() {
    for (const { conversation } of this.runs.values()) this.save(conversation);
    this.isLeft = true;
  }

  stop() {
    this.running?.stop();
  }

  say(text) {
    say(text);
  }

  // the thread's end

  draw(change) {
    const follows = this.isNearEnd();
    change();
    if (follows) this.toEnd();
    else this.showDown();
  }

  isNearEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.thread;
    return scrollHeight - scrollTop - clientHeight < NEAR_PX;
  }

  toEnd() {
    this.thread.scrollTop = this.thread.scrollHeight;
    this.showDown();
  }

  showDown() {
    byId("down").hidden = this.isNearEnd();
  }

  // what is said beside the messages

  console(text) {
    this.thread.querySelector(".welcome")?.remove();
    this.thread.append(element("div", { class: "console" }, text));
    this.toEnd();
    say(text);
  }

  notice(text, action = null) {
    const close = () => { byId("notice").hidden = true; };
    const buttons = action === null ? [] : [textButton(action[0], () => { close(); action[1](); })];
    byId("notice").replaceChildren(element("p", {}, text), ...buttons, textButton("Close", close));
    byId("notice").hidden = false;
  }

  askForKey() {
    byId("key").hidden = false;
    byId("key-wrong").hidden = key() === null;
    byId("secret").focus();
  }

  async takeKey(secret, onThisDevice) {
    rememberKey(secret, onThisDevice);
    try {
      await this.loadModels();
    } catch (error) {
      return this.cannotLoad(error);
    }
    const last = path(this.conversation).at(-1);
    this.input.focus();
    if (last?.error?.kind === "key") this.retry(last);
    return undefined;
  }

  theme() {
    return document.documentElement.dataset.theme;
  }

  setTheme(name) {
    document.documentElement.dataset.theme = name;
    local.setItem(THEME, name);
    this.showTheme();
  }

  showTheme() {
    byId("set-theme").value = this.theme();
  }
}

function titleOf(text) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > TITLE_CHARS ? `${line.slice(0, TITLE_CHARS - 1)}…` : line;
}

function welcome(page) {
  const starters = STARTERS.map((text) => textButton(text, () => page.send(text)));
  return element("div", { class: "welcome" }, element("h2", {}, "What would you like to know?"),
    element("div", { class: "starters" }, ...starters));
}
