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

/** Change a setting; a number that is out of its range is null. */
export function set(name, value) {
	settings[name] = value;
	try {
		localStorage.setItem(KEY, JSON.stringify(settings));
	} catch {
		/* kept until the page is closed */
	}
}

/** Return the sampling as a request tells it. */
export function sampling() {
	const told = Object.keys(NUMBERS).filter(name => typeof settings[name] === "number");
	return Object.fromEntries(told.map(name => [name, settings[name]]));
}

/** Return a conversation's messages, the system prompt before them. */
export const withSystem = messages =>
	settings.system.trim() ? [{ role: "system", content: settings.system }, ...messages] : messages;

function read() {
	try {
		const stored = Object.entries(JSON.parse(localStorage.getItem(KEY)) || {});
		return Object.fromEntries(stored.filter(([name, value]) => typeof value === (NUMBERS[name] ? "number" : "string")));
	} catch {
		return {}; // the defaults do
	}
}
