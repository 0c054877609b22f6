// Drain, restart, add: with the admin key, which is kept for this tab.

import { $, announce, button, confirmed, h, say } from "./dom.js";
import { call, keys } from "./http.js";
import { nameOf, t } from "./words.js";

const status = h("p", { role: "status" });
let show; // whether the admin key was accepted

export function startAdmin() {
  const key = h("input", { id: "admin-key", type: "password", autocomplete: "off", required: true });
  const locked = h(
    "form",
    {
      class: "row wrap",
      onsubmit: (event) => {
        event.preventDefault();
        unlock(key.value);
        key.value = "";
      },
    },
    h("label", { for: "admin-key" }, t("adminKey")),
    key,
    h("button", { class: "main" }, t("unlock")),
  );
  const inside = h(
    "div",
    { class: "stack" },
    adding(),
    h(
      "div",
      { class: "row wrap" },
      button(t("restartAll"), restartAll),
      button(t("lock"), () => {
        keys.admin = "";
        show(false);
      }),
    ),
  );
  show = (open) => {
    locked.hidden = open;
    inside.hidden = !open;
    document.body.classList.toggle("admin", open); // the tiles' actions
  };
  $("admin-inside").append(h("p", { class: "soft" }, t("adminHint")), locked, inside, status);
  show(false);
  if (keys.admin) unlock(keys.admin);
}

/** Return a tile's actions: {element, show(backend)}. */
export function adminActions(url) {
  const change = (fields) => act(() => call("admin/backends", { json: { url, ...fields }, admin: true }));
  let draining = false;
  const drain = button(t("drain"), () => change({ drain: !draining }));
  const remove = button(t("remove"), async () => {
    if (!(await confirmed(t("askRemove", nameOf(url)), t("remove"), t("no")))) return;
    act(() => call("admin/backends?url=" + encodeURIComponent(url), { method: "DELETE", admin: true }));
  });
  const element = h("div", { class: "row wrap actions" }, drain, remove);
  return {
    element,
    show(backend) {
      draining = backend.state === "draining";
      say(drain, draining ? t("takeBack") : t("drain"));
    },
  };
}

async function unlock(key) {
  keys.admin = key;
  try {
    await call("admin/backends", { admin: true });
    show(true);
    say(status, "");
  } catch (error) {
    keys.admin = "";
    show(false);
    tell(error.status === 401 ? t("keyWrong") : error.status === 404 ? t("adminOff") : error.message);
  }
}

async function act(change, done = t("done")) {
  try {
    await change();
    tell(done);
  } catch (error) {
    tell(error.message);
  }
}

function tell(text) {
  say(status, text);
}

async function restartAll() {
  if (await confirmed(t("askRestart"), t("yes"), t("no"))) {
    act(() => call("admin/restart", { method: "POST", admin: true }), t("restarting"));
  }
}

function adding() {
  const url = h("input", { id: "admin-url", type: "url", required: true, placeholder: "http://gpu1:8080" });
  const slots = h("input", { id: "admin-slots", type: "number", min: 1, max: 100000 });
  const add = (event) => {
    event.preventDefault();
    const fields = { url: url.value, ...(slots.value && { slots: Number(slots.value) }) };
    act(() => call("admin/backends", { json: fields, admin: true })).then(() => announce(t("done")));
  };
  return h(
    "form",
    { class: "row wrap", onsubmit: add },
    h("label", { for: "admin-url" }, t("address")),
    url,
    h("label", { for: "admin-slots" }, t("slotsAuto")),
    slots,
    h("button", {}, t("add")),
  );
}
