// The view Try it: the same request as curl, Python and openai lines.

import { lastPrompt } from "./chat.js";
import { $, codeBlock, h, say } from "./dom.js";
import { known, watch } from "./feed.js";
import { keys } from "./http.js";
import { sampling, settings, withSystem } from "./settings.js";
import { t } from "./words.js";

const base = new URL(".", location.href).href + "v1";
const BLOCKS = { curl: "curl", python: "Python", openai: "openai (pip install openai)", base: t("base") };
const OPENAI = ["temperature", "top_p", "max_tokens", "seed"]; // what its client takes by name

let prompt;
const lines = {};

export function startTryIt() {
	prompt = h("textarea#try-prompt", { rows: 2, oninput: show, placeholder: t("defaultPrompt") });
	const blocks = Object.entries(BLOCKS).map(([name, title]) => {
		lines[name] = h("code");
		return codeBlock(h("h3", title), title, lines[name]);
	});
	$("try-inside").append(h("label", t("prompt"), prompt), ...blocks);
	watch(show);
}

/** Take the conversation's prompt. */
export function enterTryIt() {
	prompt.value ||= lastPrompt();
	show();
}

/** Show the lines for the settings as they are now. */
function show() {
	const loaded = known.backends.find(backend => backend.healthy && backend.model);
	const messages = withSystem([{ role: "user", content: prompt.value || t("defaultPrompt") }]);
	const json = { model: settings.model || loaded?.model || "demo.gguf", messages, ...sampling() };
	const note = keys.api ? `# ${t("keyNote")}\n` : "";
	say(lines.base, base);
	say(lines.curl, note + curl(json));
	say(lines.python, note + python(json));
	say(lines.openai, note + openai(json));
}

function curl(json) {
	const data = JSON.stringify(json, null, 2).replace(/'/g, "'\\''");
	const key = keys.api ? ' -H "Authorization: Bearer $COMEAPI_KEY"' : "";
	return `curl ${base}/chat/completions -H 'Content-Type: application/json'${key} -d '${data}'`;
}

function python(json) {
	const key = keys.api ? ', "Authorization": "Bearer " + os.environ["COMEAPI_KEY"]' : "";
	return `import json
${keys.api ? "import os\n" : ""}import urllib.request

body = ${literal(json)}
headers = {"Content-Type": "application/json"${key}}
request = urllib.request.Request("${base}/chat/completions", json.dumps(body).encode(), headers)
with urllib.request.urlopen(request) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])`;
}

function openai({ model, messages, ...sampling }) {
	const asked = { model, messages };
	for (const [name, value] of Object.entries(sampling)) {
		if (OPENAI.includes(name)) asked[name] = value;
		else (asked.extra_body ||= {})[name] = value;
	}
	const named = Object.entries(asked).map(([name, value]) => `    ${name}=${literal(value, "    ")},\n`);
	return `${keys.api ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${base}", api_key=${keys.api ? 'os.environ["COMEAPI_KEY"]' : '"none"'})
stream = client.chat.completions.create(
${named.join("")}    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()`;
}

/** Return a value as Python writes it: JSON's texts and numbers are Python's, too. */
function literal(value, margin = "") {
	if (typeof value !== "object") return JSON.stringify(value);
	const inner = margin + "    ";
	const name = Array.isArray(value) ? () => "" : key => JSON.stringify(key) + ": ";
	const items = Object.entries(value).map(([key, each]) => `${inner}${name(key)}${literal(each, inner)},\n`);
	const [begin, end] = Array.isArray(value) ? "[]" : "{}";
	return `${begin}\n${items.join("")}${margin}${end}`;
}
