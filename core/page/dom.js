// Makes elements. Texts become text nodes: no markup is ever parsed.

import { t } from "./words.js";

/**
 * Return an element. `what` is its tag, id and classes: "p#said.soft.big". An object that may follow has attributes, and
 * listeners as onclick and the like. The rest is inside, as for refill.
 */
export function h(what, ...parts) {
	const [, tag, id, classes] = /^(\w+)#?([\w-]*)(.*)$/.exec(what);
	const element = document.createElement(tag);
	if (id) element.id = id;
	if (classes) element.className = classes.replaceAll(".", " ").trim();
	return fill(element, parts);
}

/** Return an SVG element. */
export const svg = (tag, ...parts) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), parts);

export const $ = id => document.getElementById(id);

const given = value => value !== null && value !== undefined && value !== false;

function fill(element, parts) {
	const props = parts[0]?.constructor === Object ? parts.shift() : {};
	for (const [name, value] of Object.entries(props)) {
		if (typeof value === "function") element.addEventListener(name.slice(2), value);
		else if (given(value)) element.setAttribute(name, value === true ? "" : value);
	}
	refill(element, parts);
	return element;
}

/** Put elements and texts into an element, in place of what is there; not what is null or false. */
export const refill = (element, ...parts) => element.replaceChildren(...parts.flat(2).filter(given));

/** Change an element's text only where it differs: what is selected, or read out, stays as it is. */
export function say(element, text) {
	if (element.textContent !== text) element.textContent = text;
}

/** Tell something to those who listen rather than look. */
export const announce = text => say($("said"), text);

/** Return a button; `classes` as ".main". */
export const button = (text, onclick, classes = "", props = {}) =>
	h("button" + classes, { type: "button", onclick, ...props }, text);

/** Return a form that calls a function when it is sent. */
export const form = (classes, onsent, ...inside) =>
	h("form" + classes, { onsubmit: event => (event.preventDefault(), onsent()) }, inside);

/** Return a button that copies what `text()` returns, and says so. */
export function copyButton(text) {
	const copy = async () => {
		try {
			await navigator.clipboard.writeText(text());
		} catch {
			copyByHand(text()); // the clipboard is only for https and this machine
		}
		say(made, t("copied"));
		announce(t("copied"));
		setTimeout(() => say(made, t("copy")), 1500);
	};
	const made = button(t("copy"), copy, ".quiet");
	return made;
}

/** Return a block of code with a title, and a button that copies it. */
export const codeBlock = (title, label, code) => {
	const bar = h(
		"div.bar",
		title,
		copyButton(() => code.textContent),
	);
	return h("div.code", bar, h("pre", { tabindex: 0, role: "group", "aria-label": label }, code));
};

function copyByHand(text) {
	const area = h("textarea.unseen", text);
	document.body.append(area);
	area.select();
	document.execCommand("copy");
	area.remove();
}

/** Let a file be saved. */
export function save(name, text) {
	const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
	h("a", { href: url, download: name }).click();
	setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** Show a dialog with what `inside(close)` returns; resolves to what it is closed with, "" where it is left. */
export function asked(label, inside) {
	return new Promise(resolve => {
		const onclose = () => {
			dialog.remove();
			resolve(dialog.returnValue);
		};
		const dialog = h(
			"dialog",
			{ "aria-label": label, onclose },
			inside(value => dialog.close(value)),
		);
		document.body.append(dialog);
		dialog.showModal();
	});
}

/** Ask a question in a dialog; resolves to whether it was confirmed. */
export async function confirmed(question, yes) {
	const answer = await asked(question, close => {
		const no = button(t("no"), () => close(""));
		return [
			h("p", question),
			h(
				"div.row.end",
				no,
				button(yes, () => close("yes"), ".main"),
			),
		];
	});
	return answer === "yes";
}
