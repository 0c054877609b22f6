// Makes elements. Texts become text nodes: no markup is ever parsed.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element. `props`: attributes, and listeners as onclick and the like; what is null or false is left out. */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** Return an SVG element. */
export function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

export const $ = (id) => document.getElementById(id);

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Change an element's text only where it differs: what is selected, or read out, stays as it is. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Tell something to those who listen rather than look. */
export function announce(text) {
  say($("said"), text);
}

/** Return a button. */
export function button(text, onclick, props) {
  return h("button", { type: "button", onclick, ...props }, text);
}

/** Return a button that copies what `text()` returns, and says so. */
export function copyButton(words, text, props) {
  const copy = button(
    words.copy,
    async () => {
      try {
        await navigator.clipboard.writeText(text());
      } catch {
        copyByHand(text()); // the clipboard is only for https and this machine
      }
      copy.textContent = words.copied;
      announce(words.copied);
      setTimeout(() => (copy.textContent = words.copy), 1500);
    },
    { class: "quiet", ...props },
  );
  return copy;
}

function copyByHand(text) {
  const area = h("textarea", { class: "unseen" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Let a file be saved. */
export function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** Ask a question in a dialog; resolves to whether it was confirmed. */
export function confirmed(question, yes, no) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      {
        "aria-label": question,
        onclose: () => {
          dialog.remove();
          resolve(dialog.returnValue === "yes");
        },
      },
      h("p", {}, question),
      h(
        "div",
        { class: "row end" },
        button(no, () => dialog.close("")),
        button(yes, () => dialog.close("yes"), { class: "main" }),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}
