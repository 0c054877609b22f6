// The page's words, by the browser's language; numbers and times as it writes them.

const wanted = (navigator.languages || [navigator.language]).find(tag => /^(en|ja)\b/i.test(tag)) || "en";
export const language = wanted.slice(0, 2).toLowerCase();
const { default: WORDS } = await import(language === "ja" ? "./japanese.js" : "./english.js");

/** Return the words for a name; those that depend on something are given it. */
export const t = (name, ...facts) => (facts.length ? WORDS[name](...facts) : WORDS[name]);

/** Put the words into the frame: elements name theirs in data-t and data-t-label. */
export function translate(root) {
	document.documentElement.lang = language;
	for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
	for (const element of root.querySelectorAll("[data-t-label]"))
		element.setAttribute("aria-label", t(element.dataset.tLabel));
}

/** Return a number with as many digits as are worth reading. */
export const number = value =>
	value?.toLocaleString(language, { maximumFractionDigits: value >= 100 ? 0 : value >= 10 ? 1 : 2 }) ?? "–";

/** Return a time in seconds with its unit. */
export function duration(seconds) {
	if (seconds === null || seconds === undefined) return "–";
	return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${number(seconds)} ${t("seconds")}`;
}

export const percent = share => share.toLocaleString(language, { style: "percent", maximumFractionDigits: 0 });

export const megabytes = value =>
	value >= 1000 ? `${number(Math.round(value / 100) / 10)} GB` : `${number(Math.round(value))} MB`;

/** Return the time of day of a moment in seconds. */
export const timeOf = seconds =>
	new Date(seconds * 1000).toLocaleTimeString(language, { timeStyle: "medium", hourCycle: "h23" });

/** Return a backend's name: its URL without what all have. */
export const nameOf = url => url.replace(/^https?:\/\//, "");
