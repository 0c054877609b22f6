// Markdown to DOM nodes. What a model writes is hostile: text becomes text nodes, links lead to http and https alone,
// pictures are not fetched, depth is bounded, and no search looks far ahead, so that no text can hang the page.

import { codeBlock, h } from "./dom.js";
import { t } from "./words.js";

const DEEPEST = 8;
const AHEAD = 2000; // characters within which a mark, a link or code ends

/** Show a text in an element. What has not changed since the last call keeps its nodes: selections survive. */
export function render(element, text) {
	const blocks = parse(text.replace(/\r\n?/g, "\n").split("\n"), 0);
	const old = element.rendered || [];
	let same = 0;
	while (same < blocks.length && same < old.length && blocks[same].source === old[same]) same++;
	while (element.childNodes.length > same) element.lastChild.remove();
	element.append(...built(blocks.slice(same)));
	element.rendered = blocks.map(block => block.source);
}

// ---- blocks: {source, build(), text of a paragraph}

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t](.*)$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const RULE = /^(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}> ?/;

const blank = line => !line.trim();

function parse(lines, depth) {
	const blocks = [];
	for (let at = 0; at < lines.length;) {
		if (blank(lines[at])) {
			at++;
			continue;
		}
		const [build, next, text] = one(lines, at, depth);
		blocks.push({ source: lines.slice(at, next).join("\n"), build, text });
		at = next;
	}
	return blocks;
}

const built = blocks => blocks.map(block => block.build());

/** Return what builds the block that begins at a line, the line after it, and its text where it is a paragraph. */
function one(lines, at, depth) {
	const line = lines[at];
	const [, marks, title] = HEADING.exec(line) || [];
	if (FENCE.test(line)) return fence(lines, at);
	if (marks) return [() => heading(marks.length, title.trim()), at + 1];
	if (isRule(line)) return [() => h("hr"), at + 1];
	if (depth < DEEPEST && QUOTE.test(line)) return quote(lines, at, depth);
	if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
	if (isTable(lines, at)) return table(lines, at);
	let end = at + 1;
	while (end < lines.length && !blank(lines[end]) && (depth >= DEEPEST || !interrupts(lines, end))) end++;
	const text = lines
		.slice(at, end)
		.map(each => each.trim())
		.join("\n");
	return [() => h("p", inline(text)), end, text];
}

const isRule = line => line.length < 200 && RULE.test(line.trim());

const interrupts = (lines, at) =>
	[FENCE, HEADING, QUOTE, /^ *(?:[-*+]|1[.)]) /].some(begin => begin.test(lines[at])) ||
	isRule(lines[at]) ||
	isTable(lines, at);

/** Return a heading; all are of one level for those who listen, since a model's may be in any order. */
const heading = (level, title) => h("h3.level" + level, inline(title.replace(/ #+$/, "").trim()));

function fence(lines, at) {
	const [, mark, info] = FENCE.exec(lines[at]);
	let end = at + 1;
	const closes = line => line.trim().length >= mark.length && line.trim() === mark[0].repeat(line.trim().length);
	while (end < lines.length && !closes(lines[end])) end++;
	const text = lines.slice(at + 1, end).join("\n");
	const language = info.trim().split(" ")[0].slice(0, 30) || t("code");
	return [() => codeBlock(h("span", language), t("code"), h("code", text)), end + 1];
}

function quote(lines, at, depth) {
	let end = at;
	while (end < lines.length && QUOTE.test(lines[end])) end++;
	const inside = lines.slice(at, end).map(line => line.replace(QUOTE, ""));
	const blocks = parse(inside, depth + 1);
	return [() => h("blockquote", built(blocks)), end];
}

function list(lines, at, depth) {
	const start = parseInt(ITEM.exec(lines[at])[2], 10);
	const items = [];
	let end = at;
	for (;;) {
		const item = end < lines.length && ITEM.exec(lines[end]);
		if (!item || isNaN(parseInt(item[2], 10)) !== isNaN(start) || isRule(lines[end])) break;
		const margin = item[1].length + item[2].length + 1;
		const within = [lines[end++].slice(margin)];
		while (end < lines.length && belongs(lines, end, item[1].length))
			within.push(lines[end].slice(Math.min(indent(lines[end++]), margin)));
		items.push(parse(within, depth + 1));
		while (end + 1 < lines.length && blank(lines[end]) && ITEM.test(lines[end + 1])) end++;
	}
	const inside = blocks => (blocks.length === 1 && blocks[0].text ? inline(blocks[0].text) : built(blocks));
	const build = () =>
		h(
			start >= 0 ? "ol" : "ul",
			{ start: start > 1 && start },
			items.map(blocks => h("li", inside(blocks))),
		);
	return [build, end];
}

const indent = line => line.length - line.trimStart().length;

/** Whether a line belongs to the item above, whose marker is so far in. */
function belongs(lines, at, margin) {
	if (blank(lines[at])) return at + 1 < lines.length && !blank(lines[at + 1]) && indent(lines[at + 1]) > margin;
	if (indent(lines[at]) > margin) return true;
	return !blank(lines[at - 1]) && !ITEM.test(lines[at]) && !interrupts(lines, at);
}

function isTable(lines, at) {
	const [head, rule = ""] = lines.slice(at, at + 2);
	if (!head.includes("|") || !rule.includes("-")) return false;
	const marks = cells(rule);
	return marks.every(mark => /^:?-+:?$/.test(mark)) && marks.length === cells(head).length;
}

function cells(line) {
	const found = [""];
	let code = false;
	const text = line.trim();
	for (let at = text[0] === "|" ? 1 : 0; at < text.length; at++) {
		if (text[at] === "`") code = !code;
		if (text[at] === "|" && !code) found.push("");
		else found[found.length - 1] += text[at] === "\\" && text[at + 1] === "|" ? text[++at] : text[at];
	}
	if (found.length > 1 && !found.at(-1).trim()) found.pop();
	return found.map(cell => cell.trim());
}

function table(lines, at) {
	const sides = cells(lines[at + 1]).map(mark => (!mark.endsWith(":") ? "" : mark[0] === ":" ? ".center" : ".right"));
	let end = at + 2;
	while (end < lines.length && lines[end].includes("|") && !blank(lines[end])) end++;
	const row = (tag, line) => {
		const texts = cells(line);
		return h(
			"tr",
			sides.map((side, column) => h(tag + side, inline(texts[column] || ""))),
		);
	};
	const rows = lines.slice(at + 2, end);
	const build = () => {
		const body = rows.map(line => row("td", line));
		const inside = h("table", h("thead", row("th", lines[at])), h("tbody", body));
		return h("div.scroll", { tabindex: 0, role: "group", "aria-label": t("table") }, inside);
	};
	return [build, end];
}

// ---- inside a block

const MARKS = { "**": "strong", __: "strong", "~~": "del", "*": "em", _: "em" };
const WORD = /[\p{L}\p{N}]/u;
const CODE = /^(`+)(?!`)([^]*?[^`])\1(?!`)/;
const LINK = /^!?\[([^[\]]*)\]\(([^)]*)\)/;
const ADDRESS = /^https?:\/\/[^\s<>"'`|\\^{}\u3000-\u9fff\uff00-\uffef]+/;
const PLAIN = /^(?:\\[!-/:-@[-`{-~]|`+|\*+|_+|~+|[^])/;

/** Return the nodes of a block's text. */
function inline(text, depth = 0) {
	const nodes = [""];
	for (let at = 0; at < text.length;) {
		const ahead = text.slice(at, at + AHEAD);
		let [node, length] = (depth < DEEPEST && span(ahead, text[at - 1] || "", depth)) || [];
		if (text[at] === "\n") [node, length] = [h("br"), 1];
		if (node) {
			nodes.push(node, "");
		} else {
			const [plain] = PLAIN.exec(ahead);
			nodes[nodes.length - 1] += plain[0] === "\\" ? plain.at(-1) : plain;
			length = plain.length;
		}
		at += length;
	}
	return nodes.filter(Boolean);
}

/** Return what a text begins with, and how long that is; null where it is plain. `before` is the character before. */
function span(text, before, depth) {
	if (!"`![h*_~".includes(text[0])) return null;
	const [code, , literal] = CODE.exec(text) || [];
	if (code) return [h("code", literal.replace(/\n/g, " ").trim() || " "), code.length];
	const [whole, label, target] = LINK.exec(text) || [];
	if (whole) return [link(target.trim().split(/\s/)[0], inline(label, depth + 1)), whole.length];
	const address = !WORD.test(before) && ADDRESS.exec(text)?.[0].replace(/[.,;:!?)\]*_~]+$/, "");
	return address ? [link(address, [address]), address.length] : marked(text, before, depth);
}

/** Return a link where it leads to http or https. */
function link(target, inside) {
	if (!/^https?:\/\//i.test(target)) return h("span", { title: target }, inside);
	const props = { href: target, title: target, target: "_blank", rel: "noopener noreferrer nofollow" };
	return h("a", props, inside.length ? inside : target);
}

function marked(text, before, depth) {
	const mark = MARKS[text.slice(0, 2)] ? text.slice(0, 2) : text[0];
	const { length } = mark;
	const isWord = character => mark[0] === "_" && WORD.test(character || "");
	if (!MARKS[mark] || !/^\S/.test(text.slice(length)) || isWord(before)) return null;
	for (let end = text.indexOf(mark, length + 1); end >= 0; end = text.indexOf(mark, end + 1)) {
		if (length === 1 && (text[end + 1] === mark || text[end - 1] === mark)) continue;
		if (length === 2 && text[end + 2] === mark[0]) end++; // ***both***
		if (/\s/.test(text[end - 1]) || isWord(text[end + length])) continue;
		return [h(MARKS[mark], inline(text.slice(length, end), depth + 1)), end + length];
	}
	return null;
}
