// Draws figures in the reader's theme. They come from Python; here nothing is computed.
/* global Plotly */

import { read } from "./api.js";
import { byId, fill, table } from "./dom.js";
import { theme } from "./theme.js";

const NARROW = 600; // pixels
const NARROW_COLUMNS = 10;
const SCALE_PIXELS = 48; // of a colour scale that lies below its figure
const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" };

const drawn = new Map();
const unseen = new Set(); // frames that had no width when they were to be drawn
const templates = read("/assets/themes.json");

const isNarrow = (frame) => frame.clientWidth < NARROW;

// Drawn again where a frame crosses the width at which its layout changes, and when it comes into sight.
const widths = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const isOther = target.dataset.narrow && target.dataset.narrow !== String(isNarrow(target));
    if (target.clientWidth && (isOther || unseen.has(target))) put(target);
  }
});

// On a narrow screen the newest columns fill the frame and the others are dragged in; the labels stay.
function narrowed(frame, layout) {
  if (!isNarrow(frame)) return layout;
  const columns = layout.meta?.steps?.length ?? 0;
  if (columns > NARROW_COLUMNS) {
    layout.xaxis = { ...layout.xaxis, range: [columns - NARROW_COLUMNS - 0.5, columns - 0.5], autorange: false };
  }
  layout.font = { size: 11 };
  layout.margin = { ...layout.margin };
  if (layout.coloraxis) {
    // Beside the figure the scale would take a quarter of its width: below it, under the axis's title.
    layout.margin.b += SCALE_PIXELS;
    const plotted = layout.height - layout.margin.t - layout.margin.b;
    const colorbar = { ...layout.coloraxis.colorbar, orientation: "h", x: 0, xanchor: "left", xpad: 0, len: 0.95 };
    Object.assign(colorbar, { y: -(layout.margin.b - 34) / plotted, yanchor: "top", ypad: 0, thickness: 8 });
    layout.coloraxis = { ...layout.coloraxis, colorbar };
  }
  return layout;
}

async function put(frame) {
  const { figure, more, listen } = drawn.get(frame);
  const template = (await templates)[theme()];
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
  const layout = narrowed(frame, { ...figure.layout, ...more(figure), template, autosize: true });
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
