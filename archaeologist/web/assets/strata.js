// The heatmap: metric, click, arrow keys.
/* global Plotly */

import { ofCampaign, read } from "./api.js";
import { byId, choose, number, say } from "./dom.js";
import { draw } from "./figures.js";

const frame = byId("figure-strata");
const metric = byId("metric");
const rows = byId("rows");
let campaign = null;
let cell = null; // the one that was pointed at or moved to; it stays the same when the figure is drawn anew
let open = () => {};
let title = "";
let bySubmodule = new Set();

// Offers the metrics of a campaign.
export function offerMetrics(metrics) {
  choose(metric, metrics.map(({ name, title }) => [name, title]), metric.value);
  bySubmodule = new Set(metrics.filter((one) => one.has_submodules).map(({ name }) => name));
}

// The chosen metric where parts of a block have it.
export const metricOfParts = () => (bySubmodule.has(metric.value) ? metric.value : undefined);

// Shows the strata of a campaign; `select` is told the block and the step of a cell that is opened.
export async function showStrata(which, select) {
  if (campaign !== which) cell = null;
  campaign = which;
  open = select;
  rows.disabled = !bySubmodule.has(metric.value);
  rows.title = rows.disabled ? "This metric is of blocks only" : "";
  const wanted = { metric: metric.value, rows: rows.disabled ? undefined : rows.value };
  const drawing = await read(ofCampaign(which, "figures/strata", wanted));
  if (campaign !== which || metric.value !== wanted.metric || (wanted.rows && rows.value !== wanted.rows)) return;
  title = drawing.title;
  say("definition", drawing.definition);
  byId("definition-more").href = drawing.address;
  await draw("strata", drawing, { listen });
}

function listen() {
  frame.on("plotly_click", ({ points }) => {
    const [point] = points;
    if (point.curveNumber === 0) {
      // The hover that Plotly held back for a moment may not have come.
      goTo(...point.pointNumber);
      openCell();
      return;
    }
    const step = stepOf(frame.layout.xaxis.categoryarray.indexOf(point.x));
    if (step !== null) open(null, step);
  });
  frame.on("plotly_hover", ({ points }) => {
    const [point] = points;
    if (point.curveNumber === 0) goTo(...point.pointNumber);
  });
}

const stepOf = (column) => frame.layout.meta.steps[column]?.[1] ?? null;

function goTo(row, column) {
  const { rows: names, blocks } = frame.layout.meta;
  cell = { row: names[row], block: blocks[row], step: stepOf(column) };
}

// Where the cell is in the figure that is drawn: in its row, else in its block's lowest one. A reader begins at the top
// row of the newest checkpoint.
function place() {
  const { rows: names, blocks, steps } = frame.layout.meta;
  const last = { row: names.length - 1, column: steps.length - 1 };
  if (cell === null) return last;
  const row = names.includes(cell.row) ? names.indexOf(cell.row) : blocks.indexOf(cell.block);
  const column = steps.findIndex(([first, end]) => first <= cell.step && cell.step <= end);
  return { row: row < 0 ? last.row : row, column: column < 0 ? last.column : column };
}

function openCell() {
  const { row, column } = place();
  const block = frame.layout.meta.blocks[row];
  open(block === "predictions" ? null : block, stepOf(column));
}

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };

frame.addEventListener("keydown", (event) => {
  const meta = frame.layout?.meta;
  if (!meta) return;
  const last = { row: meta.rows.length - 1, column: meta.steps.length - 1 };
  let { row, column } = place();
  if (event.key === "Enter") openCell();
  else if (event.key === "Home") column = 0;
  else if (event.key === "End") column = last.column;
  else if (event.key in MOVES) {
    const [up, right] = MOVES[event.key];
    row = Math.min(last.row, Math.max(0, row + up));
    column = Math.min(last.column, Math.max(0, column + right));
  } else return;
  event.preventDefault();
  goTo(row, column);
  tell(row, column);
});

// Says the cell, and shows its label where it is in sight.
function tell(row, column) {
  const { rows: names, steps } = frame.layout.meta;
  const value = frame._fullData?.[0]?.customdata?.[row]?.[column];
  const [first, end] = steps[column];
  const when = first === end ? `step ${first}` : `steps ${first} to ${end}`;
  say("cell", `${names[row]}, ${when}: ${title} ${value === null || Number.isNaN(value) ? "not measured" : number(value)}`);
  Plotly.Fx.hover(frame, [{ curveNumber: 0, pointNumber: [row, column] }]);
}
