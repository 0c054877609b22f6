// Starts the page, and shows the view that the address names: #now, #chat, #try.

import { startChat } from "./chat.js";
import { $, asked, form, h } from "./dom.js";
import { run } from "./feed.js";
import { askKeyBy } from "./http.js";
import { startNow } from "./now.js";
import { enterTryIt, startTryIt } from "./tryit.js";
import { t, translate } from "./words.js";

const VIEWS = ["now", "chat", "try"];

function showView() {
	if (location.hash === "#content") return; // the link that skips the header
	const name = VIEWS.find(view => location.hash === "#" + view) || VIEWS[0];
	for (const view of VIEWS) $(view).hidden = view !== name;
	for (const link of document.querySelectorAll("nav a"))
		link.setAttribute("aria-current", link.hash === "#" + name && "page");
	document.title = `${t(name)} · ComeAPI`;
	window.scrollTo(0, name === "chat" ? document.body.scrollHeight : 0);
	if (name === "try") enterTryIt();
	if (name === "chat") $("input").focus({ preventScroll: true });
}

/** Ask the user for the API key; resolves to it, or to "" where he has none. */
const askForKey = wrong =>
	asked(t("keyTitle"), close => {
		const key = h("input#key", { type: "password", autocomplete: "off", required: true, autofocus: true });
		return form(
			".stack",
			() => close(key.value.trim()),
			h("h2", t("keyTitle")),
			h("p.problem", { role: "alert" }, wrong && t("keyWrong")),
			h("label", t("key"), key),
			h("p.soft", t("keyHint")),
			h("div.row.end", h("button.main", t("go"))),
		);
	});

translate(document);
askKeyBy(askForKey);
startNow();
startChat();
startTryIt();
showView();
addEventListener("hashchange", showView);
run();
