// Conversations, kept in the browser. Each is a tree of messages: to edit or to regenerate one makes a branch.

const PREFIX = "comeapi.thread.";
const ROLES = ["user", "assistant"];
const MOST = 5000; // messages of a conversation that is imported

let full = () => {}; // told when the browser keeps no more

export const onFull = listener => (full = listener);

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
		return this.walk("", id => this.chosen[id]);
	}

	/** Return the messages before this one, first to last. */
	before(node) {
		return this.walk(node.id, id => this.nodes[id].parent).reverse();
	}

	walk(id, next) {
		const path = [];
		while (this.nodes[(id = next(id))] && path.length < MOST) path.push(this.nodes[id]);
		return path;
	}

	/** Return a message and those in its place, in the order in which they came. */
	siblings(node) {
		return Object.values(this.nodes).filter(other => other.parent === node.parent);
	}

	/** Keep it. */
	save() {
		this.changed = Date.now();
		this.keep();
	}

	keep() {
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
export const listed = () => [...threads.values()].sort((a, b) => b.changed - a.changed);

/** Return all conversations as a file's text. */
export const exported = () =>
	JSON.stringify({ comeapi: "conversations", version: 1, conversations: listed() }, null, 1);

/** Take conversations from a file's text; returns how many. Throws where it holds none. */
export function imported(text) {
	const stored = JSON.parse(text);
	if (stored?.comeapi !== "conversations") throw new Error("no conversations");
	const taken = stored.conversations.map(sound).filter(Boolean);
	for (const thread of taken) thread.keep();
	return taken.length;
}

/** Return a Thread of what was stored, whatever that is; null where it can't be one. */
function sound(stored) {
	const nodes = {};
	for (const node of Object.values(stored?.nodes || {}).slice(0, MOST)) {
		if (!ROLES.includes(node?.role) || !isId(node.id) || !isText(node.text)) continue;
		const { id, role, text } = node;
		nodes[id] = { id, role, text, parent: isId(node.parent) ? node.parent : "", ...only(node, isText, NOTES) };
		if (node.meta) nodes[id].meta = { ...only(node.meta, isText, NAMES), ...only(node.meta, Number.isFinite, COUNTS) };
	}
	if (!Object.keys(nodes).length) return null;
	const chosen = {};
	for (const node of Object.values(nodes)) if (!node.parent || nodes[node.parent]) chosen[node.parent] = node.id;
	for (const [parent, child] of Object.entries(stored.chosen || {}))
		if (nodes[child]?.parent === parent) chosen[parent] = child;
	const about = { ...only(stored, isText, ["title"]), ...only(stored, isId, ["id"]) };
	return new Thread({ ...about, ...only(stored, Number.isFinite, ["changed"]), nodes, chosen });
}

const NOTES = ["reasoning", "error"];
const NAMES = ["model", "backend"];
const COUNTS = ["tokens", "rate", "prompt", "cached"];

/** Return the fields of these names that are as they should be. */
const only = (fields, fits, names) =>
	Object.fromEntries(names.filter(name => fits(fields[name])).map(name => [name, fields[name]]));

const isText = value => typeof value === "string";

const isId = value => isText(value) && /^[0-9a-z]{8,40}$/.test(value);

const fresh = () =>
	[...crypto.getRandomValues(new Uint8Array(12))].map(byte => byte.toString(36).padStart(2, "0")).join("");

/** Read what the browser has kept. */
export function load() {
	try {
		for (const key of Object.keys(localStorage).filter(name => name.startsWith(PREFIX))) {
			const thread = sound(JSON.parse(localStorage.getItem(key)));
			if (thread) threads.set(thread.id, thread);
		}
	} catch {
		/* none */
	}
}
