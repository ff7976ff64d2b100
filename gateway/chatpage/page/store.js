// Conversations in the browser, within bounds: the oldest make room. They leave it only as requests to this server.

import { isConversation } from "./tree.js";

const MAX_CONVERSATIONS = 200;
const MAX_CHARS = 2_000_000; // of them all: browsers give a page about 5 MB, two bytes a character
const LIST = "headrace-chats";
const ONE = "headrace-chat-";
const KEY = "headrace-key"; // the live page has the same

export class Store {
  constructor(storage) {
    this.storage = storage;
  }

  // Newest first: {id, title, updated, chars}
  list() {
    const listed = parsed(this.storage.getItem(LIST));
    return Array.isArray(listed) ? listed.filter((entry) => typeof entry?.id === "string") : [];
  }

  load(id) {
    const found = parsed(this.storage.getItem(ONE + id));
    return isConversation(found) ? found : null;
  }

  // False: it does not fit, even alone.
  save(conversation) {
    const text = JSON.stringify(conversation);
    const { id, title, updated } = conversation;
    const others = this.list().filter((entry) => entry.id !== id);
    const kept = [];
    let chars = text.length;
    for (const entry of others) {
      chars += entry.chars ?? 0;
      if (kept.length + 1 < MAX_CONVERSATIONS && chars <= MAX_CHARS) kept.push(entry);
      else this.storage.removeItem(ONE + entry.id);
    }
    if (text.length > MAX_CHARS) return false;
    for (;;) {
      try {
        this.storage.setItem(ONE + id, text);
        this.write([{ id, title, updated, chars: text.length }, ...kept]);
        return true;
      } catch {
        const oldest = kept.pop(); // the browser gives less
        if (oldest === undefined) return false;
        this.storage.removeItem(ONE + oldest.id);
      }
    }
  }

  write(entries) {
    this.storage.setItem(LIST, JSON.stringify(entries.toSorted((one, other) => other.updated - one.updated)));
  }

  rename(id, title) {
    const conversation = this.load(id);
    if (conversation !== null) this.save({ ...conversation, title });
  }

  remove(id) {
    this.storage.removeItem(ONE + id);
    this.write(this.list().filter((entry) => entry.id !== id));
  }

  removeAll() {
    for (const { id } of this.list()) this.remove(id);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

// Where a browser lets nothing be kept, things last as long as the page.
export function storageOr(name) {
  try {
    const storage = window[name];
    storage.setItem("headrace-probe", "");
    storage.removeItem("headrace-probe");
    return storage;
  } catch {
    return new Passing();
  }
}

class Passing {
  constructor() {
    this.items = new Map();
  }

  getItem(name) {
    return this.items.get(name) ?? null;
  }

  setItem(name, value) {
    this.items.set(name, value);
  }

  removeItem(name) {
    this.items.delete(name);
  }
}

const forThisTab = storageOr("sessionStorage");
export const local = storageOr("localStorage");
export const isKept = !(local instanceof Passing);

export function key() {
  return forThisTab.getItem(KEY) ?? local.getItem(KEY);
}

export function rememberKey(secret, onThisDevice) {
  forgetKey();
  (onThisDevice ? local : forThisTab).setItem(KEY, secret);
}

export function forgetKey() {
  forThisTab.removeItem(KEY);
  local.removeItem(KEY);
}
