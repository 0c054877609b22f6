// The view Try it: the same request as curl, Python and openai lines.

import { lastPrompt } from "./chat.js";
import { $, copyButton, h, say } from "./dom.js";
import { keys } from "./http.js";
import { onSettings, sampling, settings, withSystem } from "./settings.js";
import { known, watch } from "./feed.js";
import { t } from "./words.js";

const base = new URL(".", location.href).href.replace(/\/$/, "");
const OPENAI = ["temperature", "top_p", "max_tokens", "seed"]; // what its client takes by name

let prompt;
const lines = {};

export function startTryIt() {
  prompt = h("input", { id: "try-prompt", autocomplete: "off", oninput: show });
  const words = { copy: t("copy"), copied: t("copied") };
  const block = (name, title) => {
    lines[name] = h("code");
    return h(
      "div",
      { class: "code" },
      h(
        "div",
        { class: "bar" },
        h("h3", {}, title),
        copyButton(words, () => lines[name].textContent),
      ),
      h("pre", { tabindex: 0, role: "group", "aria-label": title }, lines[name]),
    );
  };
  const address = block("base", t("base"));
  $("try-inside").append(
    h(
      "div",
      { class: "stack" },
      h("div", {}, h("label", { for: "try-prompt" }, t("prompt")), prompt),
      block("curl", "curl"),
      block("python", "Python"),
      block("openai", "openai (pip install openai)"),
      address,
    ),
  );
  onSettings(show);
  let model = null;
  watch(() => {
    const now = loaded();
    if (now !== model) show();
    model = now;
  });
}

/** Show the lines for the settings as they are now. */
export function show() {
  const json = body();
  say(lines.base, base + "/v1");
  say(lines.curl, curl(json));
  say(lines.python, python(json));
  say(lines.openai, openai(json));
}

/** Take the conversation's prompt. */
export function enterTryIt() {
  prompt.value ||= lastPrompt();
  prompt.placeholder = t("defaultPrompt");
  show();
}

const loaded = () => known.backends.find((backend) => backend.healthy && backend.model)?.model || "";

function body() {
  const messages = withSystem([{ role: "user", content: prompt.value || t("defaultPrompt") }]);
  return { model: settings.model || loaded() || "demo.gguf", messages, ...sampling() };
}

function curl(json) {
  const data = JSON.stringify(json, null, 2).replace(/'/g, "'\\''");
  const key = keys.api ? ' -H "Authorization: Bearer $COMEAPI_KEY"' : "";
  return `${note("#")}curl ${base}/v1/chat/completions -H 'Content-Type: application/json'${key} -d '${data}'`;
}

function python(json) {
  const key = keys.api ? ', "Authorization": "Bearer " + os.environ["COMEAPI_KEY"]' : "";
  return `${note("#")}import json
${keys.api ? "import os\n" : ""}import urllib.request

body = ${literal(json, "")}
headers = {"Content-Type": "application/json"${key}}
url = "${base}/v1/chat/completions"
request = urllib.request.Request(url, json.dumps(body).encode(), headers)
with urllib.request.urlopen(request) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])`;
}

function openai({ model, messages, ...sampling }) {
  const named = Object.entries(sampling)
    .filter(([name]) => OPENAI.includes(name))
    .map(([name, value]) => `    ${name}=${literal(value)},\n`);
  const more = Object.fromEntries(Object.entries(sampling).filter(([name]) => !OPENAI.includes(name)));
  const extra = Object.keys(more).length ? `    extra_body=${literal(more, "    ")},\n` : "";
  return `${note("#")}${keys.api ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${base}/v1", api_key=${keys.api ? 'os.environ["COMEAPI_KEY"]' : '"none"'})
stream = client.chat.completions.create(
    model=${literal(model)},
    messages=${literal(messages, "    ")},
${named.join("")}${extra}    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()`;
}

const note = (mark) => (keys.api ? `${mark} ${t("keyNote")}\n` : "");

/** Return a value as Python writes it: JSON's texts and numbers are Python's, too. */
function literal(value, margin) {
  if (value === null || typeof value === "boolean") return { null: "None", true: "True", false: "False" }[value];
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = margin + "    ";
  const items = Array.isArray(value)
    ? value.map((each) => inner + literal(each, inner))
    : Object.entries(value).map(([name, each]) => `${inner}${JSON.stringify(name)}: ${literal(each, inner)}`);
  const [begin, end] = Array.isArray(value) ? "[]" : "{}";
  return `${begin}\n${items.join(",\n")},\n${margin}${end}`;
}
