// A conversation as a tree: an answer asked for again, or a message that was edited, stands beside the one before it.
// Plain data, as it is kept; `chosen` says which of several is gone on from.

export const ROOT = 0;

export function newConversation(settings) {
  const id = `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;
  return { id, title: "", updated: Date.now(), settings: { ...settings }, nodes: [], chosen: {} };
}

// What is kept may be of another version, or damaged.
export function isConversation(value) {
  return typeof value?.id === "string" && typeof value.title === "string" && typeof value.updated === "number"
    && isRecord(value.settings) && isRecord(value.chosen) && Array.isArray(value.nodes) && value.nodes.every(isNode);
}

function isRecord(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isNode(node, place) {
  return isRecord(node) && node.id === place + 1 && Number.isInteger(node.parent) && node.parent >= ROOT
    && node.parent <= place && (node.role === "user" || node.role === "assistant") && typeof node.text === "string";
}

export function add(conversation, parent, role, text) {
  const node = { id: conversation.nodes.length + 1, parent, role, text };
  conversation.nodes.push(node);
  conversation.chosen[parent] = node.id;
  return node;
}

export function siblings(conversation, node) {
  return conversation.nodes.filter((each) => each.parent === node.parent);
}

// From the first message to the last, by what is chosen.
export function path(conversation) {
  const found = [];
  for (let id = ROOT; conversation.chosen[id] !== undefined; found.push(conversation.nodes[id - 1])) {
    id = conversation.chosen[id];
    if (conversation.nodes[id - 1] === undefined || found.length > conversation.nodes.length) break;
  }
  return found.filter((node) => node !== undefined);
}

export function lineTo(conversation, node) {
  const found = [];
  for (let each = node; each !== undefined; each = conversation.nodes[each.parent - 1]) found.unshift(each);
  return found;
}
