// The view Now: a sentence, charts, backends, what has happened.

import { adminActions, startAdmin } from "./admin.js";
import { Chart } from "./chart.js";
import { $, announce, button, h, say } from "./dom.js";
import { known, watch } from "./feed.js";
import { askKey } from "./http.js";
import { duration, megabytes, nameOf, number, percent, t, timeOf } from "./words.js";

const MOST_PIPS = 16;
const MOST_TOLD = 12;

let at = 0; // the second that is pointed at in the charts
let charts = [];
const tiles = new Map();

export function startNow() {
  const point = (second) => {
    at = second;
    drawCharts();
  };
  charts = [
    new Chart(t("tokens"), [{ column: "tokens", kind: "area", smooth: 5 }], point),
    new Chart(t("requests"), [{ column: "requests", kind: "area", smooth: 10 }], point),
    new Chart(t("first"), [{ column: "first_token", kind: "dots" }], point, duration),
    new Chart(
      t("load"),
      [
        { column: "busy", kind: "area" },
        { column: "queued", kind: "line" },
      ],
      point,
    ),
  ];
  $("charts").append(...charts.map((chart) => chart.element));
  $("happened").append(h("li", { class: "soft" }, t("nothingYet")));
  startAdmin();
  watch(show);
}

function show(changes) {
  const up = known.backends.filter((backend) => backend.healthy).length;
  showState(up, known.backends.length);
  if (!known.live) return;
  drawCharts();
  showTiles();
  showChanges();
  const worst = changes.filter((change) => change.kind !== "state" || change.state !== "up").pop();
  if (worst) announce(sentence(worst));
}

function showState(up, all) {
  const pill = $("pill");
  pill.dataset.state = !known.live ? "lost" : up === all && all ? "up" : up ? "loading" : "down";
  say($("pill-text"), known.locked ? t("locked") : !known.live ? t("connecting") : t("pill", up, all));
  if (!known.live) {
    say($("headline"), known.locked ? t("locked") : t("lost"));
    $("subline").replaceChildren(
      ...(known.locked ? [button(t("enterKey"), () => askKey(false), { class: "main" })] : []),
    );
    return;
  }
  say($("headline"), !all ? t("none") : up === all ? t("allUp", all) : up ? t("someUp", up, all) : t("noneUp"));
  const slots = known.backends.reduce((sum, backend) => sum + (backend.healthy ? backend.capacity : 0), 0);
  const { busy, queued } = known.sample;
  say($("subline"), busy || queued ? t("busy", busy, slots, queued) : t("idle", slots));
}

function drawCharts() {
  if (!known.columns.t.length) return;
  const carried = known.columns.t.filter((_, index) => known.columns.carried[index] > 0);
  charts.forEach((chart, index) => chart.draw(known.columns, at, index ? [] : carried));
}

// ---- backends

function showTiles() {
  const urls = new Set(known.backends.map((backend) => backend.url));
  for (const [url, tile] of tiles) {
    if (urls.has(url)) continue;
    tile.element.remove();
    tiles.delete(url);
  }
  for (const backend of known.backends) {
    if (!tiles.has(backend.url)) {
      tiles.set(backend.url, new Tile(backend));
      $("tiles").append(tiles.get(backend.url).element);
    }
    tiles.get(backend.url).show(backend);
  }
}

class Tile {
  constructor({ url }) {
    this.state = h("span", { class: "state" });
    this.model = h("p", { class: "model" });
    this.pips = h("div", { class: "pips", role: "img" });
    this.why = h("p", { class: "why" });
    this.figures = ["tokensShort", "cache", "memory", "restarts", "count", "errors"].map((name) => [
      t(name),
      h("dd", {}, "–"),
    ]);
    this.actions = adminActions(url);
    this.element = h(
      "article",
      { class: "card tile", "aria-label": nameOf(url) },
      h(
        "div",
        { class: "row" },
        h("h4", {}, nameOf(url)),
        h("p", { class: "badge" }, h("span", { class: "dot" }), this.state),
      ),
      this.model,
      this.pips,
      h(
        "dl",
        {},
        this.figures.map(([name, value]) => h("div", {}, h("dt", {}, name), value)),
      ),
      this.why,
      this.actions.element,
    );
  }

  show(backend) {
    const { state, in_flight: busy, capacity } = backend;
    this.element.dataset.state = state;
    say(this.state, t("state")[state] || state);
    const loads = backend.load_progress !== null && !backend.healthy;
    say(this.model, loads ? t("loadingAt", percent(backend.load_progress)) : backend.model || t("noModel"));
    this.model.title = backend.model || "";
    this.showSlots(busy, capacity);
    const prompts = (backend.prompt_tokens || 0) + (backend.cached_tokens || 0);
    const told = [
      backend.healthy ? number(backend.tokens_per_second) : "–",
      prompts ? percent(backend.cached_tokens / prompts) : "–",
      backend.memory_mb ? megabytes(backend.memory_mb) : "–",
      number(backend.restarts),
      number(backend.requests),
      number(backend.error_count),
    ];
    this.figures.forEach(([, element], index) => say(element, told[index]));
    say(this.why, backend.why === "ok" ? "" : backend.why);
    this.why.hidden = backend.why === "ok";
    this.actions.show(backend);
  }

  showSlots(busy, capacity) {
    const shown = Math.min(capacity, MOST_PIPS);
    const full = Math.min(shown, Math.ceil((busy / capacity) * shown));
    if (this.pips.childElementCount !== shown)
      this.pips.replaceChildren(...Array.from({ length: shown }, () => h("span")));
    [...this.pips.children].forEach((pip, index) => pip.classList.toggle("full", index < full));
    this.pips.setAttribute("aria-label", t("slotsBusy", busy, capacity));
    this.pips.title = t("slotsBusy", busy, capacity);
  }
}

// ---- what has happened

function showChanges() {
  const list = $("happened");
  const told = known.changes.slice(-MOST_TOLD).reverse();
  const key = told.map((change) => change.t + change.kind).join();
  if (!told.length || list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(
    ...told.map((change) =>
      h(
        "li",
        { "data-state": change.state || change.kind },
        h("time", { datetime: new Date(change.t * 1000).toISOString() }, timeOf(change.t)),
        h("span", { class: "dot" }),
        h(
          "span",
          {},
          sentence(change),
          change.why && change.state !== "up" && h("span", { class: "soft" }, " " + change.why),
        ),
      ),
    ),
  );
}

function sentence(change) {
  switch (change.kind) {
    case "state":
      return t("becameState", nameOf(change.url), t("state")[change.state] || change.state);
    case "carried":
      return t("carried", change.count);
    default:
      return t(change.kind, nameOf(change.url));
  }
}
