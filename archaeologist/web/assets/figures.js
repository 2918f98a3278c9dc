// Draws figures in the reader's theme. They come from Python; here nothing is computed.
/* global Plotly */

import "./narrow.js";
import { read } from "./api.js";
import { byId, fill, table } from "./dom.js";
import { theme } from "./theme.js";

const { isNarrow, fitted } = globalThis.narrow;
const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" };

const drawn = new Map();
const unseen = new Set(); // frames that had no width when they were to be drawn
let templates = null;

// Read once; where that failed it is tried again with the next figure.
const themes = () => (templates ??= read("/assets/themes.json").catch((problem) => { templates = null; throw problem; }));

// Drawn again where a frame crosses the width at which its layout changes, and when it comes into sight.
const widths = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const isOther = target.dataset.narrow && target.dataset.narrow !== String(isNarrow(target));
    if (target.clientWidth && (isOther || unseen.has(target))) put(target);
  }
});

async function put(frame) {
  const { figure, more, listen } = drawn.get(frame);
  const template = (await themes())[theme()];
  // A figure may have given way to another one meanwhile.
  if (drawn.get(frame)?.figure !== figure) return;
  unseen.delete(frame);
  if (!frame.clientWidth) {
    unseen.add(frame);
    return;
  }
  const narrow = String(isNarrow(frame));
  // Plotly leaves pieces of a scale behind when it moves from one side to another.
  const isNew = frame.dataset.narrow !== narrow;
  delete frame.dataset.drawn;
  if (isNew) Plotly.purge(frame);
  frame.dataset.narrow = narrow;
  const layout = fitted(frame, { ...figure.layout, ...more(figure), template, autosize: true });
  await Plotly.react(frame, figure.data, layout, CONFIG);
  if (isNew) listen(frame);
  frame.dataset.drawn = "yes";
}

// Draws a figure with the table behind it; `more` adds to its layout, `listen` is told of a frame that is drawn anew.
export async function draw(name, drawing, { more = () => ({}), listen = () => {} } = {}) {
  const frame = byId(`figure-${name}`);
  delete frame.dataset.drawn;
  drawn.set(frame, { figure: drawing.figure, more, listen });
  widths.observe(frame);
  const behind = byId(`table-${name}`);
  // Long tables are made when they are opened.
  const show = () => fill(behind, table(drawing.table, drawing.title || name));
  behind.parentElement.ontoggle = () => behind.parentElement.open && show();
  if (behind.parentElement.open) show();
  await put(frame);
}

export const redraw = (name) => drawn.has(byId(`figure-${name}`)) && put(byId(`figure-${name}`));

const redrawAll = () => Promise.all([...drawn.keys()].map(put));
document.addEventListener("themechange", redrawAll);
