// The view Chat: the conversation on the screen, the composer, the list of conversations.

import { stream } from "./answers.js";
import { $, announce, button, confirmed, h, refill, save, say } from "./dom.js";
import { known, watch } from "./feed.js";
import { call } from "./http.js";
import { Follower, MessageView } from "./messages.js";
import { NUMBERS, set, settings } from "./settings.js";
import { Thread, exported, imported, listed, load, onFull, threads } from "./threads.js";
import { t } from "./words.js";

let thread = new Thread();
let running = null; // {controller, node, thread}: the answer that is being written
let input, send, list, notice, models;
const views = new Map(); // a message's id → its view

export function startChat() {
	load();
	onFull(() => tell(t("full")));
	$("side").append(...side());
	$("talk-bar").append(...bar());
	$("settings").append(settingsForm());
	$("composer").append(...composer());
	show();
	addEventListener("pagehide", () => running?.thread.save());
	let loaded = "";
	watch(() => {
		const now = known.backends.map(backend => backend.model + backend.healthy).join();
		if (known.live && now !== loaded) listModels();
		loaded = now;
	});
}

/** Return what Try it shows as the prompt. */
export const lastPrompt = () => thread.path().findLast(node => node.role === "user")?.text || "";

// ---- the frame

function side() {
	list = h("ul#threads");
	const file = h("input.unseen", {
		type: "file",
		accept: "application/json",
		tabindex: -1,
		"aria-label": t("import"),
		onchange: () => take(file),
	});
	const out = button(t("export"), () => save("comeapi-chats.json", exported()), ".quiet");
	const back = button(t("import"), () => file.click(), ".quiet");
	return [button("+ " + t("newChat"), () => open(new Thread())), list, h("div.row", out, back, file)];
}

function bar() {
	models = h("select#model", { "aria-label": t("model"), onchange: () => set("model", models.value) });
	return [opener("conversations", "side", ".quiet.narrow"), models, opener("settings", "settings", ".quiet")];
}

/** Return the button that opens and closes an element. */
function opener(name, id, classes) {
	const toggle = () => made.setAttribute("aria-expanded", $(id).classList.toggle("open"));
	const made = button(t(name), toggle, classes, { "aria-expanded": "false", "aria-controls": id });
	return made;
}

async function listModels() {
	let names = [];
	try {
		names = (await (await call("v1/models")).json()).data.map(model => String(model.id));
	} catch {
		/* the one that is loaded answers */
	}
	const one = names.length === 1;
	if (one || (names.length && !names.includes(settings.model))) set("model", "");
	const option = (name, value = name) => h("option", { value }, name);
	refill(models, option(one ? names[0] : t("anyModel"), ""), !one && names.map(name => option(name)));
	models.value = settings.model;
}

function settingsForm() {
	const system = h(
		"textarea#system",
		{ rows: 3, placeholder: t("systemHint"), oninput: () => set("system", system.value) },
		settings.system,
	);
	const numbers = Object.entries(NUMBERS).map(([name, range]) => {
		const field = h("input#set-" + name, {
			type: "number",
			inputmode: "decimal",
			placeholder: t("auto"),
			value: settings[name],
			...range,
			oninput: () => set(name, field.value && field.validity.valid ? Number(field.value) : null),
		});
		return h("label", t(name), field);
	});
	return h("div.card.stack", h("label", t("system"), system), h("div.fields", numbers));
}

function composer() {
	notice = h("p.notice", { role: "status", hidden: true });
	input = h("textarea#input", {
		rows: 1,
		"aria-label": t("message"),
		placeholder: t("messageHint"),
		title: t("enterSends"),
		oninput: fit,
		onkeydown: event => {
			const composing = event.isComposing || event.keyCode === 229; // an input method's Enter
			if (event.key !== "Enter" || event.shiftKey || composing) return;
			event.preventDefault();
			submit();
		},
	});
	const stop = () => running?.controller.abort();
	send = button(t("send"), () => (running ? stop() : submit()), ".main", { id: "send" });
	addEventListener("keydown", ({ key }) => key === "Escape" && !document.querySelector("dialog") && stop());
	return [notice, h("div.card.composer", input, send)];
}

function fit() {
	input.rows = Math.min(10, input.value.split("\n").length);
}

function tell(text) {
	notice.hidden = !text;
	say(notice, text);
}

// ---- conversations

function open(other) {
	thread = other;
	$("side").classList.remove("open");
	show();
	input.focus();
}

function show() {
	showList();
	showThread();
}

function showList() {
	const rows = listed().map(each => {
		const title = each.title || t("untitled");
		const cut = { title: t("deleteChat"), "aria-label": `${t("deleteChat")}: ${title}` };
		return h(
			"li",
			button(title, () => open(each), ".quiet.thread", { "aria-current": each === thread && "true" }),
			button("×", () => forget(each), ".quiet.cut", cut),
		);
	});
	refill(list, rows);
}

async function forget(each) {
	if (!(await confirmed(t("askDelete"), t("deleteChat")))) return;
	if (running?.thread === each) running.controller.abort();
	each.remove();
	if (each === thread) open(new Thread());
	else showList();
}

async function take(file) {
	try {
		const count = imported(await file.files[0].text());
		tell(t("imported", count));
		open(threads.get(thread.id) || listed()[0] || thread);
	} catch {
		tell(t("importFailed"));
	}
	file.value = "";
}

// ---- messages

function showThread() {
	const path = thread.path();
	for (const id of [...views.keys()]) if (!path.some(node => node.id === id)) views.delete(id);
	const elements = path.map(node => {
		if (!views.has(node.id)) views.set(node.id, new MessageView(node, host));
		views.get(node.id).show();
		return views.get(node.id).element;
	});
	refill($("messages"), path.length ? elements : welcome());
	window.scrollTo(0, document.body.scrollHeight);
}

function welcome() {
	const samples = t("samples").map(text => button(text, () => ask(text)));
	return h("div.welcome", h("p.big", t("welcome")), h("p.soft", t("welcomeHint")), h("div.row.wrap.center", samples));
}

/** What messages may ask for. */
const host = {
	written: () => running?.node,
	siblings: node => thread.siblings(node),
	choose(node) {
		thread.chosen[node.parent] = node.id;
		thread.save();
		showThread();
	},
	regenerate: node => answer(node.parent),
	resend: (node, text) => running || answer(thread.add(node.parent, "user", text).id),
};

// ---- asking

function submit() {
	const text = input.value;
	if (!text.trim() || running) return;
	input.value = "";
	fit();
	ask(text);
}

const ask = text => running || answer(thread.add(thread.path().at(-1)?.id || "", "user", text).id);

/** Let an answer be written below a message. */
async function answer(parent) {
	const own = thread;
	const node = own.add(parent, "assistant", "");
	running = { controller: new AbortController(), node, thread: own };
	tell("");
	own.save();
	show();
	say(send, t("stop"));
	announce(t("answering"));
	const follow = new Follower(() => views.get(node.id));
	try {
		await stream(own.before(node), node, running.controller.signal, () => follow.more());
		announce(t("answered"));
	} catch (error) {
		if (error.name !== "AbortError") node.error = t("failed", error.message);
		announce(node.error || t("stopped"));
	}
	running = null;
	follow.end();
	own.save();
	say(send, t("send"));
	if (own === thread) for (const view of views.values()) view.show();
	if (document.activeElement === document.body) input.focus();
}
