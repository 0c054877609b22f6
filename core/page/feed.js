// The balancer's feed: read while the page is seen (browsers allow few connections), found again when it breaks off.

import { call, events } from "./http.js";

const KEPT = 600; // seconds
const SILENCE = 15000; // milliseconds after which the connection counts as dead

/** What is known: `columns` of samples, `changes`, `backends`; `live` tells whether it is of now. */
export const known = { live: false, locked: false, columns: { t: [] }, changes: [], backends: [], sample: null };

const listeners = [];

/** Call `listener(fresh changes)` whenever more is known. */
export const watch = listener => listeners.push(listener);

function tell(changes) {
	for (const listener of listeners) listener(changes);
}

function take({ name, data }) {
	const { history, sample, backends, changes } = JSON.parse(data);
	Object.assign(known, { live: true, locked: false });
	if (name === "history") Object.assign(known, { columns: history, changes });
	if (name !== "now") return;
	Object.assign(known, { sample, backends });
	if (known.columns.t.at(-1) !== sample.t) {
		for (const [column, values] of Object.entries(known.columns)) {
			values.push(sample[column]);
			if (values.length > KEPT) values.shift();
		}
		known.changes = [...known.changes, ...changes].slice(-50);
	} // else a new history has told it already
	tell(changes);
}

async function listen() {
	const stop = new AbortController();
	const hide = () => document.hidden && stop.abort();
	document.addEventListener("visibilitychange", hide);
	let watchdog;
	const renew = () => {
		clearTimeout(watchdog);
		watchdog = setTimeout(() => stop.abort(), SILENCE);
	};
	try {
		const answer = await call("events", { signal: stop.signal });
		renew();
		for await (const event of events(answer)) {
			renew();
			take(event);
		}
	} finally {
		clearTimeout(watchdog);
		document.removeEventListener("visibilitychange", hide);
	}
}

const seen = () =>
	new Promise(resolve => {
		if (document.hidden) document.addEventListener("visibilitychange", resolve, { once: true });
		else resolve();
	});

/** Read the feed for ever. */
export async function run() {
	for (let pause = 500; ; pause = Math.min(pause * 2, 4000)) {
		await seen();
		try {
			await listen();
			pause = 250;
		} catch (error) {
			if (known.live) pause = 250;
			known.locked = error.status === 401;
		}
		known.live = false;
		tell([]);
		await new Promise(resolve => setTimeout(resolve, document.hidden ? 0 : pause));
	}
}
