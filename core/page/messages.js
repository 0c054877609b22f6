// Messages on the screen: one message with its figures and actions, and an answer that grows.

import { button, copyButton, form, h, refill, say } from "./dom.js";
import { render } from "./markdown.js";
import { nameOf, number, t } from "./words.js";

const PAUSE = 1200; // milliseconds without a token, after which the answer seems to pause

/** A message on the screen. `host` says what is written now, and does what the user wants: see chat.js. */
export class MessageView {
	constructor(node, host) {
		this.node = node;
		this.host = host;
		this.isUser = node.role === "user";
		this.thought = h("div.prose");
		this.reasoning = h("details.reasoning", h("summary", t("reasoning")), this.thought);
		this.text = h("div.prose", { dir: "auto" });
		this.meta = h("p.meta.soft");
		this.actions = h("div.row.actions-row");
		this.element = h("article.message." + node.role, { "aria-label": t(this.isUser ? "you" : "assistant") });
		this.fill();
	}

	fill() {
		refill(this.element, !this.isUser && this.reasoning, this.text, this.meta, this.actions);
	}

	get running() {
		return this.host.written() === this.node;
	}

	show() {
		const { text, reasoning } = this.node;
		this.reasoning.hidden = !reasoning;
		if (reasoning) render(this.thought, reasoning);
		if (this.isUser) say(this.text, text);
		else render(this.text, text);
		this.element.setAttribute("aria-busy", this.running);
		this.element.classList.toggle("running", this.running);
		this.showMeta();
		this.showActions();
	}

	showMeta() {
		const { meta = {}, error, text, reasoning } = this.node;
		const { backend, model, tokens, rate, prompt, cached } = meta;
		const empty = !this.isUser && !this.running && !text && !reasoning;
		const problem = error || (empty && t("empty"));
		const told = [
			problem && h("strong.problem", problem),
			model,
			backend && h("span", { title: t("backendTitle") }, nameOf(backend)),
			tokens && t("metaTokens", number(tokens)),
			rate && t("metaRate", number(rate)),
			prompt && Number.isFinite(cached) && t("metaCached", number(cached), number(prompt)),
		].filter(Boolean);
		const parts = told.map((part, index) => [index > 0 && " · ", part]);
		refill(this.meta, parts);
		this.meta.hidden = !told.length;
	}

	showActions() {
		const { node, host } = this;
		const siblings = host.siblings(node);
		const at = siblings.indexOf(node);
		const free = !host.written();
		const key = [siblings.length, at, free].join();
		if (this.key === key) return;
		this.key = key;
		const turn = (step, sign, name) =>
			button(sign, () => host.choose(siblings[at + step]), ".quiet", {
				"aria-label": t(name),
				title: t(name),
				disabled: !siblings[at + step],
			});
		const count = { title: t("branch", at + 1, siblings.length) };
		const branches = [
			turn(-1, "‹", "earlier"),
			h("span.soft", count, `${at + 1}/${siblings.length}`),
			turn(1, "›", "later"),
		];
		const again = this.isUser
			? button(t("edit"), () => this.edit(), ".quiet")
			: button(t("regenerate"), () => host.regenerate(node), ".quiet");
		refill(this.actions, siblings.length > 1 && branches, !this.running && copyButton(() => node.text), free && again);
	}

	/** Let the user change his message: what he sends is a branch. */
	edit() {
		const { node } = this;
		const rows = Math.min(12, node.text.split("\n").length + 1);
		const area = h("textarea", { rows, "aria-label": t("message") }, node.text);
		const done = () => {
			this.fill();
			if (area.value.trim()) this.host.resend(node, area.value);
		};
		const back = button(t("no"), () => this.fill());
		refill(this.element, form(".stack.edit", done, area, h("div.row.end", back, h("button.main", t("send")))));
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
		this.end();
		this.timer = setTimeout(() => this.view()?.element.classList.add("waiting"), PAUSE);
	}

	end() {
		clearTimeout(this.timer);
		this.view()?.element.classList.remove("waiting");
	}
}
