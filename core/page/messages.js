// Messages on the screen: one message with its figures and actions, and an answer that grows.

import { button, copyButton, h, say } from "./dom.js";
import { render } from "./markdown.js";
import { nameOf, number, t } from "./words.js";

const PAUSE = 1200; // milliseconds without a token, after which the answer seems to pause

/** A message on the screen. `host` says what is written now, and does what the user wants: see chat.js. */
export class MessageView {
  constructor(node, host) {
    this.node = node;
    this.host = host;
    this.thought = h("div", { class: "prose" });
    this.reasoning = h("details", { class: "reasoning" }, h("summary", {}, t("reasoning")), this.thought);
    this.text = h("div", { class: "prose", dir: "auto" });
    this.meta = h("p", { class: "meta soft" });
    this.actions = h("div", { class: "row actions-row" });
    this.element = h(
      "article",
      { class: "message " + node.role, "aria-label": node.role === "user" ? t("you") : t("assistant") },
      node.role === "assistant" && this.reasoning,
      this.text,
      this.meta,
      this.actions,
    );
  }

  get running() {
    return this.host.written() === this.node;
  }

  show() {
    const { node } = this;
    this.reasoning.hidden = !node.reasoning;
    if (node.reasoning) render(this.thought, node.reasoning);
    if (node.role === "user") say(this.text, node.text);
    else render(this.text, node.text);
    this.element.setAttribute("aria-busy", String(this.running));
    this.element.classList.toggle("running", this.running);
    this.showMeta();
    this.showActions();
  }

  showMeta() {
    const { meta = {}, error, text, role } = this.node;
    const { backend, model, tokens, rate, prompt, cached } = meta;
    const told = [
      model,
      backend && h("span", { title: t("backendTitle") }, nameOf(backend)),
      tokens && t("metaTokens", number(tokens)),
      rate && t("metaRate", number(rate)),
      prompt && Number.isFinite(cached) && t("metaCached", number(cached), number(prompt)),
    ];
    const parts = told.filter(Boolean).flatMap((part, index) => (index ? [" · ", part] : [part]));
    const ended = role === "assistant" && !this.running;
    const problem = error || (ended && !text && !this.node.reasoning ? t("empty") : "");
    this.meta.replaceChildren(...(problem ? [h("strong", { class: "problem" }, problem), " "] : []), ...parts);
    this.meta.hidden = !this.meta.childNodes.length;
  }

  showActions() {
    const { node } = this;
    const siblings = this.host.siblings(node);
    const at = siblings.indexOf(node);
    const key = [siblings.length, at, Boolean(this.host.written())].join();
    if (this.key === key) return;
    this.key = key;
    const turn = (step, name) =>
      h(
        "button",
        {
          type: "button",
          class: "quiet",
          "aria-label": t(name),
          title: t(name),
          disabled: !siblings[at + step],
          onclick: () => this.host.choose(siblings[at + step]),
        },
        step < 0 ? "‹" : "›",
      );
    const free = !this.host.written();
    this.actions.replaceChildren(
      ...[
        ...(siblings.length > 1
          ? [
              turn(-1, "earlier"),
              h("span", { class: "soft", title: t("branch", at + 1, siblings.length) }, `${at + 1}/${siblings.length}`),
              turn(1, "later"),
            ]
          : []),
        !this.running && copyButton({ copy: t("copy"), copied: t("copied") }, () => node.text),
        free &&
          (node.role === "user"
            ? button(t("edit"), () => this.edit(), { class: "quiet" })
            : button(t("regenerate"), () => this.host.regenerate(node), { class: "quiet" })),
      ].filter(Boolean),
    );
  }

  /** Let the user change his message: what he sends is a branch. */
  edit() {
    const area = h("textarea", {
      rows: Math.min(12, this.node.text.split("\n").length + 1),
      "aria-label": t("message"),
    });
    area.value = this.node.text;
    const back = () => this.element.replaceChildren(this.text, this.meta, this.actions);
    const done = () => {
      back();
      if (area.value.trim()) this.host.resend(this.node, area.value);
    };
    this.element.replaceChildren(
      h(
        "form",
        {
          class: "stack edit",
          onsubmit: (event) => {
            event.preventDefault();
            done();
          },
        },
        area,
        h("div", { class: "row end" }, button(t("cancel"), back), h("button", { class: "main" }, t("save"))),
      ),
    );
    area.focus();
  }
}

/** Shows an answer as it comes, no more often than the screen and the page's own work allow. `view()`: where it is. */
export class Follower {
  constructor(view) {
    this.view = view;
    this.due = false;
    this.cost = 0;
    this.watch();
  }

  more() {
    this.watch();
    if (this.due) return;
    this.due = true;
    setTimeout(() => requestAnimationFrame(() => this.draw()), Math.min(500, this.cost * 3));
  }

  draw() {
    this.due = false;
    const view = this.view();
    if (!view) return;
    const started = performance.now();
    const page = document.documentElement;
    const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
    view.show();
    if (atEnd) window.scrollTo(0, page.scrollHeight);
    this.cost = performance.now() - started;
  }

  /** The caret breathes while nothing comes: the backend loads, or another one goes on. */
  watch() {
    clearTimeout(this.timer);
    this.view()?.element.classList.remove("waiting");
    this.timer = setTimeout(() => this.view()?.element.classList.add("waiting"), PAUSE);
  }

  end() {
    clearTimeout(this.timer);
    this.view()?.element.classList.remove("waiting");
  }
}
