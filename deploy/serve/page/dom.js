// Elements without markup: all text goes through textContent, so that a sensor's name can never become HTML or script.

/** An element with properties and children; a string child becomes text. `class`, `on` and aria-/data- names are known. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value === true ? "" : value);
    else element[name] = value;
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element with attributes. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Set the text of an element, if it changes: screen readers announce each write into a live region. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const FOCUSABLE = "a[href], summary, [tabindex='0']";

/** Replace the children of an element; its open parts stay open, and the focus stays at its place. */
export function refill(element, ...children) {
  const isOpen = [...element.querySelectorAll("details")].map((part) => part.open);
  const place = [...element.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
  element.replaceChildren(...children);
  element.querySelectorAll("details").forEach((part, index) => (part.open = isOpen[index] ?? false));
  if (place >= 0) element.querySelectorAll(FOCUSABLE)[place]?.focus({ preventScroll: true });
}

/** The text as children of an element; words between backticks become code. */
export function coded(text) {
  return text.split("`").map((part, place) => (place % 2 ? el("code", {}, part) : part));
}

/** A table with headings; a cell is text, or an element. Columns named in `numbers` are aligned to the right. */
export function table(caption, headings, rows, numbers = []) {
  const side = (index) => (numbers.includes(index) ? "number" : "wrap");
  return el("div", { class: "scroll-x", tabIndex: 0, role: "region", "aria-label": caption },
    el("table", {},
      el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, headings.map((heading, index) => el("th", { scope: "col", class: side(index) }, heading)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, index) =>
        index ? el("td", { class: side(index) }, cell) : el("th", { scope: "row", class: side(index) }, cell)))))));
}

/** A panel with a heading and a note under it. */
export function panel(title, note, ...children) {
  return el("section", { class: "panel" },
    el("header", {}, el("h2", {}, title), note ? el("p", { class: "note" }, coded(note)) : null), children);
}

/** An entry of a chart's key; `kind` is the class of its swatch. */
export function keyItem(kind, label) {
  return el("li", {}, el("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), label);
}
