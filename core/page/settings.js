// Model, system prompt and sampling: shared by Chat and Try it, kept in the browser.

const KEY = "comeapi.settings";

/** The numbers, with their ranges. One that is empty is left to the server. */
export const NUMBERS = {
  temperature: { min: 0, max: 5, step: 0.05 },
  top_p: { min: 0, max: 1, step: 0.01 },
  top_k: { min: 0, max: 1000, step: 1 },
  max_tokens: { min: 1, max: 1000000, step: 1 },
  seed: { min: 0, max: 4294967295, step: 1 },
};

export const settings = { model: "", system: "", ...read() };

const listeners = [];

/** Call `listener` whenever a setting has changed. */
export function onSettings(listener) {
  listeners.push(listener);
}

/** Change a setting. */
export function set(name, value) {
  settings[name] = value;
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    /* kept until the page is closed */
  }
  for (const listener of listeners) listener();
}

/** Return the sampling as a request tells it. */
export function sampling() {
  const told = {};
  for (const [name, { min, max }] of Object.entries(NUMBERS)) {
    const value = settings[name];
    if (typeof value === "number" && value >= min && value <= max) told[name] = value;
  }
  return told;
}

/** Return a conversation's messages, the system prompt before them. */
export function withSystem(messages) {
  return settings.system.trim() ? [{ role: "system", content: settings.system }, ...messages] : messages;
}

function read() {
  const found = {};
  try {
    const stored = JSON.parse(localStorage.getItem(KEY)) || {};
    for (const name of ["model", "system"]) if (typeof stored[name] === "string") found[name] = stored[name];
    for (const name of Object.keys(NUMBERS)) if (typeof stored[name] === "number") found[name] = stored[name];
  } catch {
    /* the defaults do */
  }
  return found;
}
