// The view Now: a sentence, charts, backends, what has happened.

import { adminActions, startAdmin } from "./admin.js";
import { Chart } from "./chart.js";
import { $, announce, button, h, refill, say } from "./dom.js";
import { known, watch } from "./feed.js";
import { askKey } from "./http.js";
import { duration, megabytes, nameOf, number, percent, t, timeOf } from "./words.js";

const MOST_PIPS = 16;
const MOST_TOLD = 12;

let at = 0; // the second that is pointed at in the charts
let charts = [];
const tiles = new Map();

export function startNow() {
	const point = second => {
		at = second;
		drawCharts();
	};
	const running = [
		{ column: "busy", kind: "area" },
		{ column: "queued", kind: "line" },
	];
	charts = [
		new Chart(t("tokens"), [{ column: "tokens", kind: "area", smooth: 5 }], point),
		new Chart(t("requests"), [{ column: "requests", kind: "area", smooth: 10 }], point),
		new Chart(t("first"), [{ column: "first_token", kind: "dots" }], point, duration),
		new Chart(t("load"), running, point),
	];
	$("charts").append(...charts.map(chart => chart.element));
	$("happened").append(h("li.soft", t("nothingYet")));
	startAdmin();
	watch(show);
}

function show(changes) {
	showState(known.backends.filter(backend => backend.healthy));
	if (!known.live) return;
	drawCharts();
	showTiles();
	showChanges();
	const worst = changes.filter(change => change.state !== "up").pop();
	if (worst) announce(sentence(worst));
}

function showState(healthy) {
	const { live, locked, sample } = known;
	const [up, all] = [healthy.length, known.backends.length];
	$("pill").dataset.state = !live ? "lost" : up === all && all ? "up" : up ? "loading" : "down";
	say($("pill-text"), locked ? t("locked") : live ? t("pill", up, all) : t("connecting"));
	if (!live) {
		say($("headline"), locked ? t("locked") : t("lost"));
		refill($("subline"), locked && button(t("enterKey"), () => askKey(false), ".main"));
		return;
	}
	say($("headline"), !all ? t("none") : up === all ? t("allUp", all) : up ? t("someUp", up, all) : t("noneUp"));
	const slots = healthy.reduce((sum, backend) => sum + backend.capacity, 0);
	const { busy, queued } = sample;
	say($("subline"), busy || queued ? t("busy", busy, slots, queued) : t("idle", slots));
}

function drawCharts() {
	const { columns } = known;
	if (!columns.t.length) return;
	const carried = columns.t.filter((_, index) => columns.carried[index] > 0);
	charts.forEach((chart, index) => chart.draw(columns, at, index ? [] : carried));
}

// ---- backends

function showTiles() {
	const urls = known.backends.map(backend => backend.url);
	for (const [url, tile] of tiles) {
		if (urls.includes(url)) continue;
		tile.element.remove();
		tiles.delete(url);
	}
	for (const backend of known.backends) {
		const tile = tiles.get(backend.url) || new Tile(backend.url);
		if (!tiles.has(backend.url)) $("tiles").append(tile.element);
		tiles.set(backend.url, tile);
		tile.show(backend);
	}
}

/** The figures' names, and how a backend tells each. */
const FIGURES = {
	tokensShort: backend => backend.healthy && number(backend.tokens_per_second),
	cache: ({ prompt_tokens: told, cached_tokens: cached }) => told + cached > 0 && percent(cached / (told + cached)),
	memory: backend => backend.memory_mb && megabytes(backend.memory_mb),
	restarts: backend => number(backend.restarts),
	count: backend => number(backend.requests),
	errors: backend => number(backend.error_count),
};

class Tile {
	constructor(url) {
		this.state = h("span");
		this.model = h("p.model.soft");
		this.pips = h("div.pips", { role: "img" });
		this.why = h("p.why.soft");
		this.figures = Object.keys(FIGURES).map(() => h("dd"));
		this.actions = adminActions(url);
		this.element = h(
			"article.card.tile",
			{ "aria-label": nameOf(url) },
			h("div.row", h("h4", nameOf(url)), h("div.badge", h("span.dot"), this.state)),
			this.model,
			this.pips,
			h(
				"dl",
				Object.keys(FIGURES).map((name, index) => h("div", h("dt", t(name)), this.figures[index])),
			),
			this.why,
			this.actions.element,
		);
	}

	show(backend) {
		const { state, load_progress: loaded, healthy, model, why } = backend;
		this.element.dataset.state = state;
		say(this.state, t("state")[state] || state);
		say(this.model, loaded !== null && !healthy ? t("loadingAt", percent(loaded)) : model || t("noModel"));
		this.model.title = model || "";
		this.showSlots(backend.in_flight, backend.capacity);
		Object.values(FIGURES).forEach((told, index) => say(this.figures[index], told(backend) || "–"));
		say(this.why, why === "ok" ? "" : why);
		this.why.hidden = why === "ok";
		this.actions.show(backend);
	}

	showSlots(busy, capacity) {
		const shown = Math.min(capacity, MOST_PIPS);
		const full = Math.ceil((busy / capacity) * shown);
		const pip = (_, index) => h(index < full ? "span.full" : "span");
		refill(this.pips, Array.from({ length: shown }, pip));
		this.pips.title = t("slotsBusy", busy, capacity);
		this.pips.setAttribute("aria-label", this.pips.title);
	}
}

// ---- what has happened

function showChanges() {
	const list = $("happened");
	const told = known.changes.slice(-MOST_TOLD).reverse();
	const key = told.map(change => change.t + change.kind).join();
	if (!told.length || list.dataset.key === key) return;
	list.dataset.key = key;
	const lines = told.map(change =>
		h(
			"li",
			{ "data-state": change.state || change.kind },
			h("time", { datetime: new Date(change.t * 1000).toISOString() }, timeOf(change.t)),
			h("span.dot"),
			h("span", sentence(change), change.why && change.state !== "up" && h("span.soft", " " + change.why)),
		),
	);
	refill(list, lines);
}

function sentence({ kind, url, state, count }) {
	if (kind === "state") return t("becameState", nameOf(url), t("state")[state] || state);
	return kind === "carried" ? t("carried", count) : t(kind, nameOf(url));
}
