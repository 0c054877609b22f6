// Conversations, kept in the browser. Each is a tree of messages: to edit or to regenerate one makes a branch.

const PREFIX = "comeapi.thread.";
const ROLES = ["user", "assistant"];
const MOST = 5000; // messages of a conversation that is imported

let full = () => {}; // told when the browser keeps no more

export function onFull(listener) {
  full = listener;
}

export const threads = new Map();

/** A conversation. `nodes`: id → {id, parent, role, text, …}; `chosen`: parent's id → the child that is shown. */
export class Thread {
  constructor(stored = {}) {
    Object.assign(this, { id: fresh(), title: "", changed: Date.now(), nodes: {}, chosen: {}, ...stored });
  }

  /** Add a message below another one ("" for the first) and show it. */
  add(parent, role, text) {
    const node = { id: fresh(), parent, role, text };
    this.nodes[node.id] = node;
    this.chosen[parent] = node.id;
    if (!this.title && role === "user") this.title = text.trim().split("\n")[0].slice(0, 80);
    return node;
  }

  /** Return the messages that are shown, first to last. */
  path() {
    const path = [];
    for (let id = this.chosen[""]; id && this.nodes[id] && path.length < MOST; id = this.chosen[id])
      path.push(this.nodes[id]);
    return path;
  }

  /** Return a message and those in its place, in the order in which they came. */
  siblings(node) {
    return Object.values(this.nodes).filter((other) => other.parent === node.parent);
  }

  /** Return the messages before this one. */
  before(node) {
    const path = [];
    for (let at = this.nodes[node.parent]; at && path.length < MOST; at = this.nodes[at.parent]) path.unshift(at);
    return path;
  }

  /** Keep it. */
  save() {
    this.changed = Date.now();
    threads.set(this.id, this);
    try {
      localStorage.setItem(PREFIX + this.id, JSON.stringify(this));
    } catch {
      full();
    }
  }

  remove() {
    threads.delete(this.id);
    try {
      localStorage.removeItem(PREFIX + this.id);
    } catch {
      /* it was not kept */
    }
  }
}

/** Return all conversations, the newest first. */
export function listed() {
  return [...threads.values()].sort((a, b) => b.changed - a.changed);
}

/** Return all conversations as a file's text. */
export function exported() {
  return JSON.stringify({ comeapi: "conversations", version: 1, conversations: listed() }, null, 1);
}

/** Take conversations from a file's text; returns how many. Throws where it holds none. */
export function imported(text) {
  const stored = JSON.parse(text);
  if (stored?.comeapi !== "conversations" || !Array.isArray(stored.conversations)) throw new Error("no conversations");
  const taken = stored.conversations.map(sound).filter(Boolean);
  for (const thread of taken) {
    const { changed } = thread;
    thread.save();
    thread.changed = changed;
  }
  return taken.length;
}

/** Return a Thread of what was stored, whatever that is; null where it can't be one. */
function sound(stored) {
  const nodes = {};
  for (const node of Object.values(stored?.nodes || {}).slice(0, MOST)) {
    if (!ROLES.includes(node?.role) || !isId(node.id) || typeof node.text !== "string") continue;
    const { id, role, text } = node;
    nodes[id] = { id, role, text, parent: isId(node.parent) ? node.parent : "" };
    if (typeof node.reasoning === "string") nodes[id].reasoning = node.reasoning;
    if (typeof node.error === "string") nodes[id].error = node.error;
    if (node.meta && typeof node.meta === "object") nodes[id].meta = soundMeta(node.meta);
  }
  if (!Object.keys(nodes).length) return null;
  const chosen = {};
  for (const node of Object.values(nodes)) if (!node.parent || nodes[node.parent]) chosen[node.parent] = node.id;
  for (const [parent, child] of Object.entries(stored.chosen || {}))
    if (nodes[child]?.parent === parent) chosen[parent] = child;
  const title = typeof stored.title === "string" ? stored.title.slice(0, 80) : "";
  const changed = Number.isFinite(stored.changed) ? stored.changed : Date.now();
  return new Thread({ ...(isId(stored.id) && { id: stored.id }), title, changed, nodes, chosen });
}

function soundMeta(meta) {
  const told = {};
  for (const name of ["model", "backend"]) if (typeof meta[name] === "string") told[name] = meta[name];
  for (const name of ["tokens", "rate", "prompt", "cached"]) if (Number.isFinite(meta[name])) told[name] = meta[name];
  return told;
}

const isId = (text) => typeof text === "string" && /^[0-9a-z]{8,40}$/.test(text);

function fresh() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(36).padStart(2, "0")).join("");
}

/** Read what the browser has kept. */
export function load() {
  try {
    for (const key of Object.keys(localStorage).filter((name) => name.startsWith(PREFIX))) {
      const thread = sound(JSON.parse(localStorage.getItem(key)));
      if (thread) threads.set(thread.id, thread);
    }
  } catch {
    /* none */
  }
}
