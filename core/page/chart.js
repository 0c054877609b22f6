// One chart of the last ten minutes: an SVG drawn anew each second, its figures in HTML beside it.

import { h, say, svg } from "./dom.js";
import { number, t, timeOf } from "./words.js";

const WIDTH = 600; // a unit is a second
const HEIGHT = 100;
const GAP = 5; // seconds without a sample that break the line
const STEPS = { ArrowLeft: -5, ArrowRight: 5, PageUp: -60, PageDown: 60, Home: -WIDTH, End: WIDTH };

/** A chart. `lines`: [{column, kind: "area" | "line" | "dots", smooth}]; the first one is told in figures. */
export class Chart {
	constructor(name, lines, onpoint, format = number) {
		Object.assign(this, { format, lines, at: 0 });
		this.value = h("div.value", "–");
		this.aside = h("span.soft");
		this.strokes = lines.map(line => svg("path", { class: "stroke " + line.kind }));
		this.fill = svg("path", { class: "fill" });
		this.marks = svg("path", { class: "marks" });
		this.cross = svg("path", { class: "cross" });
		this.picture = h(
			"div.picture",
			{
				tabindex: 0,
				role: "slider",
				"aria-label": `${name}, ${t("charts")}`,
				"aria-valuemin": -WIDTH,
				"aria-valuemax": 0,
				onpointermove: event => onpoint(this.secondAt(event.clientX)),
				onpointerleave: () => onpoint(0),
				onblur: () => onpoint(0),
				onkeydown: event => {
					if (!(event.key in STEPS)) return;
					event.preventDefault();
					onpoint(within(this.at + STEPS[event.key]));
				},
			},
			svg(
				"svg",
				{ viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
				this.fill,
				this.strokes,
				this.marks,
				this.cross,
			),
		);
		this.element = h(
			"div.card.chart",
			h("div.row", h("span.name", name), this.aside),
			this.value,
			this.picture,
			h("div.row.axis.soft", { "aria-hidden": "true" }, h("span", t("ago")), h("span", t("nowAxis"))),
		);
	}

	secondAt(x) {
		const { right, width } = this.picture.getBoundingClientRect();
		return within(Math.round(((x - right) / width) * WIDTH));
	}

	/** Draw the columns; `at` is the second that is pointed at, 0 for now. `marks` are moments to be marked. */
	draw(columns, at, marks = []) {
		this.at = at;
		const times = columns.t;
		const now = times.at(-1);
		const series = this.lines.map(line => smoothed(columns[line.column] || [], line.smooth));
		const peak = Math.max(0, ...series.flat());
		series.forEach((values, index) => {
			const { kind } = this.lines[index];
			const parts = runs(times, values, now, nice(peak), kind);
			this.strokes[index].setAttribute("d", parts.map(points => `M${points.join("L")}h.01`).join(""));
			if (kind === "area") this.fill.setAttribute("d", parts.map(area).join(""));
		});
		this.marks.setAttribute("d", marks.map(moment => `M${WIDTH + moment - now} 0V${HEIGHT}`).join(""));
		this.cross.setAttribute("d", at ? `M${WIDTH + at} 0V${HEIGHT}` : "");
		this.tell(times, series, now + at, this.format(peak));
	}

	tell(times, series, moment, peak) {
		const { at, lines } = this;
		const told = series.map((values, index) => valueAt(times, values, moment, !at && lines[index].kind === "dots"));
		const value = this.format(told[0]);
		const time = timeOf(moment);
		say(this.value, value);
		say(this.aside, at ? time : told[1] ? t("waiting", number(told[1])) : t("peak", peak));
		this.picture.setAttribute("aria-valuenow", at);
		this.picture.setAttribute("aria-valuetext", at ? t("atTime", time, value) : t("chartNow", value, peak));
	}
}

const within = second => Math.max(1 - WIDTH, Math.min(0, second));

/** Return the value at a moment, or null; with `last`, the last one before it. */
function valueAt(times, values, moment, last) {
	let at = times.length - 1;
	while (at >= 0 && (times[at] > moment + 0.5 || (last && values[at] === null))) at--;
	return at >= 0 && (last || moment - times[at] < GAP) ? values[at] : null;
}

function smoothed(values, seconds) {
	if (!seconds) return values;
	let sum = 0;
	return values.map((value, at) => {
		sum += value - (at >= seconds ? values[at - seconds] : 0);
		return Math.max(0, sum) / Math.min(seconds, at + 1);
	});
}

/** Return the top of a scale: a round number above the peak. */
function nice(peak) {
	const power = 10 ** Math.floor(Math.log10(peak || 1));
	return power * ([1, 2, 5, 10].find(step => step * power >= peak * 1.05) || 20);
}

/** Return the points of a line, [x, y] each, in runs without a gap. A dot is one alone; a "line" has none at zero. */
function runs(times, values, now, top, kind) {
	const found = [];
	let before = -Infinity;
	values.forEach((value, at) => {
		const shown = times[at] >= now - WIDTH && (kind === "line" ? value : value !== null);
		if (shown) {
			if (kind === "dots" || times[at] - before >= GAP) found.push([]);
			const y = HEIGHT - 2 - (value / top) * (HEIGHT - 4);
			found.at(-1).push([(WIDTH + times[at] - now).toFixed(1), y.toFixed(1)]);
		}
		before = shown ? times[at] : -Infinity;
	});
	return found;
}

const area = points => `M${points[0][0]} ${HEIGHT}L${points.join("L")}L${points.at(-1)[0]} ${HEIGHT}Z`;
