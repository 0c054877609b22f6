// Drain, restart, add: with the admin key, which is kept for this tab.

import { $, button, confirmed, form, h, say } from "./dom.js";
import { call, keepKey, keys } from "./http.js";
import { nameOf, t } from "./words.js";

const status = h("p", { role: "status" });
let show; // whether the admin key was accepted

export function startAdmin() {
	const key = h("input#admin-key", { type: "password", autocomplete: "off", required: true });
	const enter = () => {
		unlock(key.value);
		key.value = "";
	};
	const lock = () => {
		keepKey("admin", "");
		show(false);
	};
	const locked = form(".row.wrap", enter, h("label", t("adminKey"), key), h("button.main", t("unlock")));
	const buttons = h("div.row.wrap", button(t("restartAll"), restartAll), button(t("lock"), lock));
	const inside = h("div.stack", adding(), buttons);
	show = open => {
		locked.hidden = open;
		inside.hidden = !open;
		document.body.classList.toggle("admin", open); // the tiles' actions
	};
	$("admin-inside").append(h("p.soft", t("adminHint")), locked, inside, status);
	show(false);
	if (keys.admin) unlock(keys.admin);
}

/** Return a tile's actions: {element, show(backend)}. */
export function adminActions(url) {
	let draining = false;
	const drain = button(t("drain"), () => act("backends", { json: { url, drain: !draining } }));
	const remove = button(t("remove"), async () => {
		if (await confirmed(t("askRemove", nameOf(url)), t("remove")))
			act("backends?url=" + encodeURIComponent(url), { method: "DELETE" });
	});
	return {
		element: h("div.row.wrap.actions", drain, remove),
		show(backend) {
			draining = backend.state === "draining";
			say(drain, draining ? t("takeBack") : t("drain"));
		},
	};
}

async function unlock(key) {
	keepKey("admin", key);
	try {
		await call("admin/backends", { admin: true });
		show(true);
		say(status, "");
	} catch (error) {
		keepKey("admin", "");
		show(false);
		say(status, error.status === 401 ? t("keyWrong") : error.status === 404 ? t("adminOff") : error.message);
	}
}

async function act(path, request, done = t("done")) {
	try {
		await call("admin/" + path, { ...request, admin: true });
		say(status, done);
	} catch (error) {
		say(status, error.message);
	}
}

async function restartAll() {
	if (await confirmed(t("askRestart"), t("restartAll"))) act("restart", { method: "POST" }, t("restarting"));
}

function adding() {
	const url = h("input#admin-url", { type: "url", required: true, placeholder: "http://gpu1:8080" });
	const slots = h("input#admin-slots", { type: "number", min: 1, max: 100000 });
	return form(
		".row.wrap",
		() => act("backends", { json: { url: url.value, ...(slots.value && { slots: Number(slots.value) }) } }),
		h("label", t("address"), url),
		h("label", t("slotsAuto"), slots),
		h("button", t("add")),
	);
}
