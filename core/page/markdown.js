// Markdown to DOM nodes. What a model writes is hostile: text becomes text nodes, links lead to http and https alone,
// pictures are not fetched, depth is bounded, and every search is linear, so that no text can hang the page.

import { copyButton, h } from "./dom.js";
import { t } from "./words.js";

const DEEPEST = 8;

/** Show a text in an element. What has not changed since the last call keeps its nodes: selections survive. */
export function render(element, text) {
  const blocks = parse(text.replace(/\r\n?/g, "\n").split("\n"), 0);
  const old = element.rendered || [];
  let same = 0;
  while (same < blocks.length && same < old.length && blocks[same].source === old[same]) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  for (const block of blocks.slice(same)) element.append(build(block, 0));
  element.rendered = blocks.map((block) => block.source);
}

// ---- blocks

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t](.*)$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const RULE = /^(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}> ?/;

const blank = (line) => !line.trim();

function parse(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (blank(lines[at])) {
      at++;
      continue;
    }
    const [block, next] = one(lines, at, depth);
    block.source = lines.slice(at, next).join("\n");
    blocks.push(block);
    at = next;
  }
  return blocks;
}

/** Return the block that begins at a line, and the line after it. */
function one(lines, at, depth) {
  const line = lines[at];
  const heading = HEADING.exec(line);
  if (FENCE.test(line)) return fence(lines, at);
  if (heading) return [{ kind: "heading", level: heading[1].length, text: unhashed(heading[2].trim()) }, at + 1];
  if (isRule(line)) return [{ kind: "rule" }, at + 1];
  if (depth < DEEPEST && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  let end = at + 1;
  while (end < lines.length && !blank(lines[end]) && (depth >= DEEPEST || !interrupts(lines, end))) end++;
  return [
    {
      kind: "paragraph",
      text: lines
        .slice(at, end)
        .map((each) => each.trim())
        .join("\n"),
    },
    end,
  ];
}

const isRule = (line) => line.length < 200 && RULE.test(line.trim());

const interrupts = (lines, at) =>
  [FENCE, HEADING, QUOTE, /^ *(?:[-*+]|1[.)]) /].some((begin) => begin.test(lines[at])) ||
  isRule(lines[at]) ||
  isTable(lines, at);

function unhashed(text) {
  let end = text.length;
  while (text[end - 1] === "#") end--;
  return text[end - 1] === " " ? text.slice(0, end).trim() : text;
}

function fence(lines, at) {
  const [, mark, language] = FENCE.exec(lines[at]);
  let end = at + 1;
  const closes = (line) => line.trim().length >= mark.length && line.trim() === mark[0].repeat(line.trim().length);
  while (end < lines.length && !closes(lines[end])) end++;
  return [
    { kind: "code", language: language.trim().split(" ")[0].slice(0, 30), text: lines.slice(at + 1, end).join("\n") },
    end + 1,
  ];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  return [
    {
      kind: "quote",
      blocks: parse(
        lines.slice(at, end).map((line) => line.replace(QUOTE, "")),
        depth + 1,
      ),
    },
    end,
  ];
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
    while (end < lines.length && blank(lines[end]) && end + 1 < lines.length && ITEM.test(lines[end + 1])) end++;
  }
  return [{ kind: "list", start, items }, end];
}

const indent = (line) => line.length - line.trimStart().length;

/** Whether a line belongs to the item above, whose marker is so far in. */
function belongs(lines, at, margin) {
  if (blank(lines[at])) return at + 1 < lines.length && !blank(lines[at + 1]) && indent(lines[at + 1]) > margin;
  if (indent(lines[at]) > margin) return true;
  return !blank(lines[at - 1]) && !ITEM.test(lines[at]) && !interrupts(lines, at);
}

function isTable(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length) return false;
  const marks = cells(lines[at + 1]);
  return (
    lines[at + 1].includes("-") &&
    marks.every((mark) => /^:?-+:?$/.test(mark)) &&
    marks.length === cells(lines[at]).length
  );
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
  if (found.length > 1 && !found[found.length - 1].trim()) found.pop();
  return found.map((cell) => cell.trim());
}

function table(lines, at) {
  const head = cells(lines[at]);
  const sides = cells(lines[at + 1]).map((mark) =>
    mark.endsWith(":") ? (mark[0] === ":" ? "center" : "right") : "left",
  );
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && !blank(lines[end])) end++;
  const rows = lines.slice(at + 2, end).map((line) => cells(line).slice(0, head.length));
  return [{ kind: "table", head, sides, rows }, end];
}

// ---- nodes

function build(block, depth) {
  const inner = (blocks) => blocks.map((each) => build(each, depth + 1));
  switch (block.kind) {
    case "heading":
      return h("h3", { class: "level" + block.level }, inline(block.text)); // one level: a model's may be in any order
    case "rule":
      return h("hr");
    case "code":
      return code(block);
    case "quote":
      return h("blockquote", {}, inner(block.blocks));
    case "list":
      return h(
        block.start >= 0 ? "ol" : "ul",
        { start: block.start > 1 && block.start },
        block.items.map((item) =>
          h("li", {}, item.length === 1 && item[0].kind === "paragraph" ? inline(item[0].text) : inner(item)),
        ),
      );
    case "table": {
      const row = (tag, texts) =>
        h(
          "tr",
          {},
          block.sides.map((side, at) => h(tag, { class: side }, inline(texts[at] || ""))),
        );
      return h(
        "div",
        { class: "scroll", tabindex: 0, role: "group", "aria-label": t("table") },
        h(
          "table",
          {},
          h("thead", {}, row("th", block.head)),
          h(
            "tbody",
            {},
            block.rows.map((texts) => row("td", texts)),
          ),
        ),
      );
    }
    default:
      return h("p", {}, inline(block.text));
  }
}

function code({ language, text }) {
  return h(
    "div",
    { class: "code" },
    h(
      "div",
      { class: "bar" },
      h("span", {}, language || t("code")),
      copyButton({ copy: t("copy"), copied: t("copied") }, () => text),
    ),
    h("pre", { tabindex: 0, role: "group", "aria-label": t("code") }, h("code", {}, text)),
  );
}

// ---- inside a block

const MARKS = { "**": "strong", __: "strong", "~~": "del", "*": "em", _: "em" };
const ESCAPED = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;

/** Return the nodes of a block's text. */
function inline(text, depth = 0) {
  const nodes = [];
  const missing = new Set(); // closing marks that do not come any more: nothing is searched for twice in vain
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(plain);
    plain = "";
  };
  for (let at = 0; at < text.length;) {
    const found = depth < DEEPEST && span(text, at, depth, missing);
    if (found) {
      flush();
      nodes.push(found.node);
      at = found.end;
    } else if (text[at] === "\\" && ESCAPED.test(text[at + 1] || "")) {
      plain += text[at + 1];
      at += 2;
    } else if (text[at] === "\n") {
      flush();
      nodes.push(h("br"));
      at++;
    } else {
      const run = /^(`+|\*+|_+|~+)/.exec(text.slice(at, at + 100));
      plain += run ? run[0] : text[at];
      at += run ? run[0].length : 1;
    }
  }
  flush();
  return nodes;
}

/** Return what begins at this character, and where it ends; null where it is plain text. */
function span(text, at, depth, missing) {
  switch (text[at]) {
    case "`":
      return codeSpan(text, at, missing);
    case "!":
      return text[at + 1] === "[" ? link(text, at + 1, depth) : null;
    case "[":
      return link(text, at, depth);
    case "h":
      return bare(text, at);
    case "*":
    case "_":
    case "~":
      return marked(text, at, depth, missing);
    default:
      return null;
  }
}

/** Return where something comes next, -1 where it does not. */
function next(text, what, from, missing) {
  if (missing.has(what)) return -1;
  const found = text.indexOf(what, from);
  if (found < 0) missing.add(what);
  return found;
}

/** Return where something comes within the next characters, -1 where it does not. */
function near(text, what, from) {
  const found = text.slice(from, from + 2000).indexOf(what);
  return found < 0 ? -1 : from + found;
}

function codeSpan(text, at, missing) {
  let size = 1;
  while (text[at + size] === "`" && size < 20) size++;
  const mark = "`".repeat(size);
  for (let end = next(text, mark, at + size, missing); end >= 0; end = text.indexOf(mark, end)) {
    let over = size;
    while (text[end + over] === "`") over++;
    if (over === size)
      return {
        node: h(
          "code",
          {},
          text
            .slice(at + size, end)
            .replace(/\n/g, " ")
            .trim() || " ",
        ),
        end: end + size,
      };
    end += over;
  }
  missing.add(mark);
  return null;
}

function link(text, at, depth) {
  const middle = near(text, "](", at + 1);
  const end = middle < 0 ? -1 : near(text, ")", middle + 2);
  if (end < 0) return null;
  const label = text.slice(at + 1, middle);
  if (label.includes("[")) return null;
  const [target] = text
    .slice(middle + 2, end)
    .trim()
    .split(/\s/);
  const href = safe(target);
  const inside = inline(label, depth + 1);
  return {
    node: href ? anchor(href, inside.length ? inside : href) : h("span", { title: target }, inside),
    end: end + 1,
  };
}

function bare(text, at) {
  const start = text.startsWith("http://", at) || text.startsWith("https://", at);
  if (!start || (at && WORD.test(text[at - 1]))) return null;
  let end = at;
  while (end < text.length && end - at < 2000 && !/[\s<>"'`|\\^{}\u3000-\u9fff\uff00-\uffef]/.test(text[end])) end++;
  while (/[.,;:!?)\]*_~]/.test(text[end - 1])) end--;
  const href = safe(text.slice(at, end));
  return href && { node: anchor(href, text.slice(at, end)), end };
}

/** Return a link's address where it is one of http or https; else "". */
function safe(target) {
  try {
    const url = new URL(target);
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : "";
  } catch {
    return "";
  }
}

function anchor(href, inside) {
  return h("a", { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow" }, inside);
}

function marked(text, at, depth, missing) {
  const mark = MARKS[text.slice(at, at + 2)] ? text.slice(at, at + 2) : text[at];
  const tag = MARKS[mark];
  const after = at + mark.length;
  if (!tag || !text[after] || /\s/.test(text[after])) return null;
  if (mark[0] === "_" && at && WORD.test(text[at - 1])) return null;
  for (
    let tries = 0, end = next(text, mark, after + 1, missing);
    end >= 0 && tries < 20;
    end = text.indexOf(mark, end + 1), tries++
  ) {
    if (mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark)) continue;
    if (mark.length === 2 && text[end + 2] === mark[0]) end++;
    if (/\s/.test(text[end - 1]) || (mark[0] === "_" && WORD.test(text[end + mark.length] || ""))) continue;
    return { node: h(tag, {}, inline(text.slice(after, end), depth + 1)), end: end + mark.length };
  }
  return null;
}
