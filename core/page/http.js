// Requests to the balancer, with the key where one is asked for; and server-sent events.

/** What was refused, or could not be reached (status 0). */
export class Failure extends Error {
	constructor(status, message) {
		super(message);
		this.status = status;
	}
}

/** The keys, kept for this tab alone. */
export const keys = { api: stored("api"), admin: stored("admin") };

function stored(name) {
	try {
		return sessionStorage.getItem("comeapi." + name) || "";
	} catch {
		return ""; // the browser keeps nothing
	}
}

export function keepKey(name, key) {
	keys[name] = key;
	try {
		sessionStorage.setItem("comeapi." + name, key);
	} catch {
		/* kept until the page is closed */
	}
}

let ask = null; // asks the user for the key: page.js sets it
let asking = null; // the question that is open; all requests wait for the same one
let declined = false; // the user had no key: he is asked again only when he wants to be

export const askKeyBy = question => (ask = question);

/** Ask for the key; resolves to false where there is none. */
export function askKey(wrong) {
	asking ||= ask(wrong).then(key => {
		asking = null;
		if (key) keepKey("api", key);
		declined = !key;
		return !declined;
	});
	return asking;
}

/** Call the balancer. Asks for the key where one is wanted. Throws Failure for what is refused, AbortError. */
export async function call(path, { method, json, signal, admin } = {}) {
	for (;;) {
		if (asking) await asking;
		const key = admin ? keys.admin : keys.api;
		const headers = key ? { Authorization: "Bearer " + key } : {};
		if (json) headers["Content-Type"] = "application/json";
		const request = { method: method || (json ? "POST" : "GET"), headers, body: json && JSON.stringify(json), signal };
		const answer = await fetch(path, request).catch(error => {
			throw error.name === "AbortError" ? error : new Failure(0, error.message);
		});
		if (answer.ok) return answer;
		const told = await answer.json().catch(() => null); // not one of ours
		const failure = new Failure(answer.status, String(told?.error?.message || answer.statusText || answer.status));
		if (answer.status !== 401 || admin) throw failure;
		if (key === keys.api && (declined || !(await askKey(Boolean(key))))) throw failure;
	}
}

/** Yield the events of an answer: {name, data}. */
export async function* events(answer) {
	const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
	let rest = "";
	try {
		for (;;) {
			const { value, done } = await reader.read();
			if (done) return;
			const blocks = (rest + value).split(/\r?\n\r?\n/);
			rest = blocks.pop();
			for (const block of blocks) {
				const event = read(block);
				if (event.data) yield event;
			}
		}
	} finally {
		reader.cancel().catch(() => {});
	}
}

function read(block) {
	const event = { name: "", data: "" };
	for (const line of block.split(/\r?\n/)) {
		const [, field, value] = /^(\w*): ?(.*)$/.exec(line) || [];
		if (field === "event") event.name = value;
		if (field === "data") event.data += (event.data && "\n") + value;
	}
	return event;
}
