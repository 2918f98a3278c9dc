// Pieces of the document. Data becomes text, never markup, and what turns the direction of text becomes visible.

export const ABSENT = "–";

export const byId = (id) => document.getElementById(id);

const STEERING = /[\u061c\u007f-\u009f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]/g;
const SPOKEN = new Set(["title", "aria-label"]);

const visible = (text) =>
  typeof text === "string" ? text.replace(STEERING, (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`) : text;

// An element with attributes and children; a string is a text node. `on…` is a listener, false and null leave out.
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : SPOKEN.has(name) ? visible(String(value)) : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map(visible));
  return node;
}

export const fill = (node, ...children) => node.replaceChildren(...children.filter((child) => child !== null).map(visible));

export function say(id, text) {
  byId(id).textContent = visible(text);
}

export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return ABSENT;
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}

// A moment of the server as the reader's clock shows it.
export function moment(text) {
  const found = new Date(text ?? "");
  return Number.isNaN(found.getTime()) ? (text ?? ABSENT) : found.toLocaleString();
}

export function choose(select, entries, chosen) {
  fill(select, ...entries.map(([value, label]) => make("option", { value }, label)));
  if (entries.some(([value]) => value === chosen)) select.value = chosen;
}

// A table of text whose first column is each row's heading; `last` adds a cell to a row.
export function table({ head, rows, note = "" }, caption, last = null) {
  const titles = [...head, ...(last ? [last.title] : [])].map((name) => make("th", { scope: "col" }, name));
  const lines = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((cell) => make("td", {}, cell)),
      last ? make("td", {}, last.cell(first)) : null));
  if (!lines.length) lines.push(make("tr", {}, make("td", { colspan: titles.length }, "nothing measured")));
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    make("table", {},
      make("caption", {}, caption, note ? ` (${note})` : ""),
      make("thead", {}, make("tr", {}, ...titles)),
      make("tbody", {}, ...lines)));
}

// Names and values for a <dl>.
export const facts = (pairs) => pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);

// The numbers and words of an object, as names and values; what lies deeper is left out.
export function scalars(found, skip = []) {
  return Object.entries(found ?? {})
    .filter(([name, value]) => value !== null && typeof value !== "object" && value !== "" && !skip.includes(name))
    .map(([name, value]) => [name.replaceAll("_", " "), typeof value === "number" ? number(value) : String(value)]);
}

export function later(milliseconds, action) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}
