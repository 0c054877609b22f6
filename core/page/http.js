// Requests to the balancer, with the key where one is asked for; and server-sent events.

const KEY = "comeapi.key";
const ADMIN = "comeapi.admin";

/** What was refused, or could not be reached (status 0). */
export class Failure extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The keys, kept for this tab alone. */
export const keys = {
  get api() {
    return kept(KEY);
  },
  set api(key) {
    keep(KEY, key);
  },
  get admin() {
    return kept(ADMIN);
  },
  set admin(key) {
    keep(ADMIN, key);
  },
};

const memory = {}; // where the browser keeps nothing

function kept(name) {
  try {
    return sessionStorage.getItem(name) || "";
  } catch {
    return memory[name] || "";
  }
}

function keep(name, value) {
  memory[name] = value;
  try {
    sessionStorage.setItem(name, value);
  } catch {
    /* kept in memory */
  }
}

let ask = null; // asks the user for the key: page.js sets it
let asking = null; // the question that is open; all requests wait for the same one
let declined = false; // the user had no key: he is asked again only when he wants to be

export function askKeyBy(question) {
  ask = question;
}

/** Ask for the key; resolves to false where there is none. */
export function askKey(wrong) {
  asking ||= ask(wrong).then((key) => {
    asking = null;
    if (key) keys.api = key;
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
    let answer;
    try {
      answer = await fetch(path, {
        method: method || (json ? "POST" : "GET"),
        headers,
        body: json && JSON.stringify(json),
        signal,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure(0, "unreachable", error.message);
    }
    if (answer.ok) return answer;
    const failure = await failureOf(answer);
    if (answer.status !== 401 || admin) throw failure;
    if (key === keys.api && (declined || !(await askKey(Boolean(key))))) throw failure;
  }
}

async function failureOf(answer) {
  let error = {};
  try {
    error = (await answer.json()).error || {};
  } catch {
    /* not one of ours */
  }
  return new Failure(
    answer.status,
    String(error.code || ""),
    String(error.message || answer.statusText || answer.status),
  );
}

/** Yield the events of an answer: {name, data}. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const blocks = rest.split(/\r?\n\r?\n/);
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
