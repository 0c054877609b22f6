// The view Chat: the conversation on the screen, the composer, the list of conversations.

import { stream } from "./answers.js";
import { $, announce, button, confirmed, h, save, say } from "./dom.js";
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
  $("composer").append(composer());
  showList();
  showThread();
  addEventListener("pagehide", () => running?.thread.save());
  let loaded = "";
  watch(() => {
    const now = known.backends.map((backend) => backend.model + backend.healthy).join();
    if (known.live && now !== loaded) listModels();
    loaded = now;
  });
}

/** Return what Try it shows as the prompt. */
export function lastPrompt() {
  const asked = thread
    .path()
    .filter((node) => node.role === "user")
    .pop();
  return asked ? asked.text : "";
}

// ---- the frame

function side() {
  list = h("ul", { id: "threads" });
  const file = h("input", {
    type: "file",
    accept: "application/json",
    class: "unseen",
    tabindex: -1,
    "aria-label": t("import"),
    onchange: () => take(file),
  });
  return [
    button("+ " + t("newChat"), () => open(new Thread()), { class: "wide" }),
    list,
    h(
      "div",
      { class: "row" },
      button(t("export"), () => save("comeapi-conversations.json", exported()), { class: "quiet" }),
      button(t("import"), () => file.click(), { class: "quiet" }),
      file,
    ),
  ];
}

function bar() {
  const sideButton = button(t("conversations"), () => toggle($("side"), sideButton, "open"), {
    class: "quiet narrow",
    "aria-expanded": "false",
    "aria-controls": "side",
  });
  const settingsButton = button(
    t("settings"),
    () => {
      $("settings").hidden = !$("settings").hidden;
      settingsButton.setAttribute("aria-expanded", String(!$("settings").hidden));
    },
    { class: "quiet", "aria-expanded": "false", "aria-controls": "settings" },
  );
  models = h(
    "select",
    { id: "model", "aria-label": t("model"), onchange: () => set("model", models.value) },
    h("option", { value: "" }, t("anyModel")),
  );
  return [sideButton, models, settingsButton];
}

function toggle(element, control, name) {
  control.setAttribute("aria-expanded", String(element.classList.toggle(name)));
}

async function listModels() {
  let names = [];
  try {
    names = (await (await call("v1/models")).json()).data.map((model) => String(model.id));
  } catch {
    /* the one that is loaded answers */
  }
  if (settings.model && names.length && !names.includes(settings.model)) set("model", "");
  const options =
    names.length === 1
      ? [h("option", { value: "" }, names[0])]
      : [h("option", { value: "" }, t("anyModel")), ...names.map((name) => h("option", { value: name }, name))];
  models.replaceChildren(...options);
  models.value = names.length === 1 ? "" : settings.model;
}

function settingsForm() {
  const system = h("textarea", {
    id: "system",
    rows: 3,
    placeholder: t("systemHint"),
    oninput: () => set("system", system.value),
  });
  system.value = settings.system;
  const numbers = Object.entries(NUMBERS).map(([name, range]) => {
    const field = h("input", {
      id: "set-" + name,
      type: "number",
      inputmode: "decimal",
      placeholder: t("auto"),
      ...range,
      oninput: () => set(name, field.value === "" || !field.validity.valid ? null : Number(field.value)),
    });
    field.value = settings[name] ?? "";
    return h("div", {}, h("label", { for: "set-" + name }, t(name)), field);
  });
  return h(
    "form",
    { class: "card stack", onsubmit: (event) => event.preventDefault() },
    h("div", {}, h("label", { for: "system" }, t("system")), system),
    h("div", { class: "fields" }, numbers),
  );
}

function composer() {
  notice = h("p", { class: "notice", role: "status" });
  notice.hidden = true;
  input = h("textarea", {
    id: "input",
    rows: 1,
    "aria-label": t("message"),
    placeholder: t("messageHint"),
    title: t("enterSends"),
    oninput: fit,
    onkeydown: (event) => {
      const composing = event.isComposing || event.keyCode === 229; // an input method's Enter
      if (event.key === "Enter" && !event.shiftKey && !composing) {
        event.preventDefault();
        submit();
      }
    },
  });
  send = button(t("send"), () => (running ? running.controller.abort() : submit()), { class: "main", id: "send" });
  document.addEventListener(
    "keydown",
    (event) =>
      event.key === "Escape" && running && !document.querySelector("dialog[open]") && running.controller.abort(),
  );
  return h("div", {}, notice, h("div", { class: "card composer" }, input, send));
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
  showList();
  showThread();
  input.focus();
}

function showList() {
  list.replaceChildren(
    ...listed().map((each) =>
      h(
        "li",
        {},
        h(
          "button",
          {
            type: "button",
            class: "quiet thread",
            "aria-current": each === thread && "true",
            onclick: () => open(each),
          },
          each.title || t("untitled"),
        ),
        h(
          "button",
          {
            type: "button",
            class: "quiet cut",
            title: t("deleteChat"),
            "aria-label": `${t("deleteChat")}: ${each.title || t("untitled")}`,
            onclick: () => forget(each),
          },
          "×",
        ),
      ),
    ),
  );
}

async function forget(each) {
  if (!(await confirmed(t("askDelete"), t("deleteChat"), t("no")))) return;
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
  for (const id of [...views.keys()]) if (!path.some((node) => node.id === id)) views.delete(id);
  const elements = path.map((node) => {
    if (!views.has(node.id)) views.set(node.id, new MessageView(node, host));
    views.get(node.id).show();
    return views.get(node.id).element;
  });
  $("messages").replaceChildren(...(elements.length ? elements : [welcome()]));
  window.scrollTo(0, document.body.scrollHeight);
}

function welcome() {
  return h(
    "div",
    { class: "welcome" },
    h("p", { class: "big" }, t("welcome")),
    h("p", { class: "soft" }, t("welcomeHint")),
    h(
      "div",
      { class: "row wrap center" },
      t("samples").map((text) =>
        button(
          text,
          () => {
            input.value = text;
            submit();
          },
          { class: "chip" },
        ),
      ),
    ),
  );
}

/** What messages may ask for. */
const host = {
  written: () => running?.node,
  siblings: (node) => thread.siblings(node),
  choose(node) {
    thread.chosen[node.parent] = node.id;
    thread.save();
    showThread();
  },
  regenerate: (node) => answer(node.parent),
  resend: (node, text) => running || answer(thread.add(node.parent, "user", text).id),
};

// ---- asking

function submit() {
  const text = input.value;
  if (!text.trim() || running) return;
  input.value = "";
  fit();
  const last = thread.path().pop();
  answer(thread.add(last ? last.id : "", "user", text).id);
}

/** Let an answer be written below a message. */
async function answer(parent) {
  const own = thread;
  const node = own.add(parent, "assistant", "");
  const before = own.before(node);
  running = { controller: new AbortController(), node, thread: own };
  tell("");
  own.save();
  showList();
  showThread();
  say(send, t("stop"));
  announce(t("answering"));
  const follow = new Follower(() => views.get(node.id));
  try {
    await stream(before, node, running.controller.signal, () => follow.more());
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
