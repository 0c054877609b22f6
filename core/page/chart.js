// One chart of the last ten minutes: an SVG drawn anew each second, its figures in HTML beside it.

import { h, say, svg } from "./dom.js";
import { number, t, timeOf } from "./words.js";

const WIDTH = 600; // a unit is a second
const HEIGHT = 100;
const GAP = 5; // seconds without a sample that break the line

/** A chart. `lines`: [{column, kind: "area" | "line" | "dots", smooth}]; the first one is told in figures. */
export class Chart {
  constructor(name, lines, onpoint, format = number) {
    this.format = format;
    this.lines = lines;
    this.value = h("div", { class: "value" }, "–");
    this.aside = h("span", { class: "soft" });
    this.paths = lines.map((line) => [
      svg("path", { class: "fill " + line.kind }),
      svg("path", { class: "stroke " + line.kind }),
    ]);
    this.marks = svg("path", { class: "marks" });
    this.cross = svg("path", { class: "cross" });
    this.picture = h(
      "div",
      {
        class: "picture",
        tabindex: 0,
        role: "slider",
        "aria-label": `${name}, ${t("charts")}`,
        "aria-valuemin": -WIDTH,
        "aria-valuemax": 0,
        "aria-valuenow": 0,
        onpointermove: (event) => onpoint(Math.round((1 - this.share(event)) * -WIDTH)),
        onpointerleave: () => onpoint(0),
        onblur: () => onpoint(0),
        onkeydown: (event) => this.step(event, onpoint),
      },
      svg(
        "svg",
        { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
        this.paths.flat(),
        this.marks,
        this.cross,
      ),
    );
    this.element = h(
      "div",
      { class: "card chart" },
      h("div", { class: "row" }, h("span", { class: "name" }, name), this.aside),
      this.value,
      this.picture,
      h("div", { class: "row axis soft", "aria-hidden": "true" }, h("span", {}, t("ago")), h("span", {}, t("nowAxis"))),
    );
    this.at = 0;
  }

  share(event) {
    const { left, width } = this.picture.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - left) / width));
  }

  step(event, onpoint) {
    const to = {
      ArrowLeft: this.at - 5,
      ArrowRight: this.at + 5,
      PageUp: this.at - 60,
      PageDown: this.at + 60,
      Home: 1 - WIDTH,
      End: 0,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    onpoint(Math.max(1 - WIDTH, Math.min(0, to)));
  }

  /** Draw the columns; `at` is the second that is pointed at, 0 for now. `marks` are moments to be marked. */
  draw(columns, at, marks = []) {
    this.at = at;
    const times = columns.t;
    const now = times[times.length - 1];
    const series = this.lines.map((line) => smoothed(columns[line.column] || [], line.smooth));
    const peak = Math.max(0, ...series.flat());
    const top = nice(peak);
    series.forEach((values, index) => {
      const [fill, stroke] = this.paths[index];
      const { kind } = this.lines[index];
      const path = kind === "dots" ? dots(times, values, now, top) : line(times, values, now, top, kind === "line");
      stroke.setAttribute("d", path);
      if (kind === "area") fill.setAttribute("d", area(path));
    });
    this.marks.setAttribute("d", marks.map((moment) => `M${WIDTH + moment - now} 0V${HEIGHT}`).join(""));
    this.cross.setAttribute("d", at ? `M${WIDTH + at} 0V${HEIGHT}` : "");
    this.tell(times, series, now + at, peak);
  }

  tell(times, series, moment, peak) {
    const told = series.map((values, index) =>
      valueAt(times, values, moment, this.at === 0 && this.lines[index].kind === "dots"),
    );
    const value = this.format(told[0]);
    const most = this.format(peak);
    say(this.value, value);
    say(this.aside, this.at ? timeOf(moment) : told[1] ? t("waiting", number(told[1])) : t("peak", most));
    this.picture.setAttribute("aria-valuenow", this.at);
    this.picture.setAttribute(
      "aria-valuetext",
      this.at ? t("atTime", timeOf(moment), value) : t("chartNow", value, most),
    );
  }
}

/** Return the value at a moment, or null; with `last`, the last one before it. */
function valueAt(times, values, moment, last) {
  let at = times.length - 1;
  while (at >= 0 && times[at] > moment + 0.5) at--;
  if (last) while (at >= 0 && values[at] === null) at--;
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

const nice = (peak) => {
  const power = 10 ** Math.floor(Math.log10(peak || 1));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= peak * 1.05) || 20 * power;
};

const place = (time, value, now, top) =>
  `${(WIDTH + time - now).toFixed(1)} ${(HEIGHT - 2 - (value / top) * (HEIGHT - 4)).toFixed(1)}`;

/** Return the path of a line; with `raised`, only where it is above zero, since another one may lie there. */
function line(times, values, now, top, raised) {
  const drawn = (at) => times[at] >= now - WIDTH && !(raised && !values[at]);
  let path = "";
  values.forEach((value, at) => {
    if (!drawn(at)) return;
    const goesOn = at && drawn(at - 1) && times[at] - times[at - 1] < GAP;
    path += (goesOn ? "L" : "M") + place(times[at], value, now, top) + (raised && !goesOn ? "h.01" : "");
  });
  return path;
}

const area = (path) =>
  path
    .split("M")
    .slice(1)
    .map((part) => {
      const points = part.split("L");
      const x = (point) => point.split(" ")[0];
      return `M${x(points[0])} ${HEIGHT}L${points.join("L")}L${x(points[points.length - 1])} ${HEIGHT}Z`;
    })
    .join("");

function dots(times, values, now, top) {
  return values
    .map((value, at) => (value === null || times[at] < now - WIDTH ? "" : `M${place(times[at], value, now, top)}h.01`))
    .join("");
}
