// The page's words, by the browser's language; numbers and times as it writes them.

const wanted = (navigator.languages || [navigator.language]).find((tag) => /^(en|ja)\b/i.test(tag)) || "en";
export const language = wanted.slice(0, 2).toLowerCase();
const { default: WORDS } = await import(language === "ja" ? "./japanese.js" : "./english.js");

/** Return the words for a name; those that depend on something are given it. */
export function t(name, ...facts) {
  const words = WORDS[name];
  return typeof words === "function" ? words(...facts) : words;
}

/** Put the words into the frame: elements name theirs in data-t, data-t-label and data-t-placeholder. */
export function translate(root) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]"))
    element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const element of root.querySelectorAll("[data-t-placeholder]"))
    element.placeholder = t(element.dataset.tPlaceholder);
}

/** Return a number with as many digits as are worth reading. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString(language, { maximumFractionDigits: value >= 100 ? 0 : value >= 10 ? 1 : 2 });
}

/** Return a time in seconds with its unit. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${number(seconds)} ${t("seconds")}`;
}

export const percent = (share) => share.toLocaleString(language, { style: "percent", maximumFractionDigits: 0 });

export function megabytes(value) {
  return value >= 1000 ? `${number(Math.round(value / 100) / 10)} GB` : `${number(Math.round(value))} MB`;
}

/** Return the time of day of a moment in seconds. */
export function timeOf(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString(language, {
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
    hourCycle: "h23",
  });
}

/** Return a backend's name: its URL without what all have. */
export const nameOf = (url) => url.replace(/^https?:\/\//, "");
