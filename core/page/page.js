// Starts the page, and shows the view that the address names: #now, #chat, #try.

import { startChat } from "./chat.js";
import { $, h, say } from "./dom.js";
import { run } from "./feed.js";
import { askKeyBy } from "./http.js";
import { startNow } from "./now.js";
import { enterTryIt, startTryIt } from "./tryit.js";
import { t, translate } from "./words.js";

const VIEWS = ["now", "chat", "try"];

function showView() {
  const name = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : VIEWS[0];
  for (const view of VIEWS) $(view).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === "#" + name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${t(name)} · ComeAPI`;
  window.scrollTo(0, name === "chat" ? document.body.scrollHeight : 0);
  if (name === "try") enterTryIt();
  if (name === "chat") $("input").focus({ preventScroll: true });
}

/** Ask the user for the API key; resolves to it, or to "" where he has none. */
function askForKey(wrong) {
  return new Promise((resolve) => {
    const key = h("input", { id: "key", type: "password", autocomplete: "off", required: true, autofocus: true });
    const problem = h("p", { role: "alert", class: "problem" });
    const dialog = h(
      "dialog",
      {
        "aria-labelledby": "key-title",
        onclose: () => {
          dialog.remove();
          resolve(dialog.returnValue);
        },
      },
      h(
        "form",
        {
          class: "stack",
          onsubmit: (event) => {
            event.preventDefault();
            dialog.close(key.value.trim());
          },
        },
        h("h2", { id: "key-title" }, t("keyTitle")),
        problem,
        h("label", { for: "key" }, t("key")),
        key,
        h("p", { class: "soft" }, t("keyHint")),
        h("div", { class: "row end" }, h("button", { class: "main" }, t("go"))),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
    if (wrong) say(problem, t("keyWrong"));
  });
}

translate(document);
askKeyBy(askForKey);
startNow();
startChat();
startTryIt();
showView();
addEventListener("hashchange", () => {
  if (location.hash === "#content") return; // the link that skips the header
  showView();
});
run();
