// The heatmap: metric, click, arrow keys.
/* global Plotly */

import { ofCampaign, read } from "./api.js";
import { byId, choose, number, say } from "./dom.js";
import { draw } from "./figures.js";

const frame = byId("figure-strata");
const metric = byId("metric");
const rows = byId("rows");
const place = { row: 0, column: 0 };
let campaign = null;
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
  const { blocks, steps } = drawing.figure.layout.meta;
  // The top row of the newest checkpoint: where a reader begins.
  Object.assign(place, { row: blocks.length - 1, column: steps.length - 1 });
  await draw("strata", drawing, { listen });
}

function listen() {
  frame.on("plotly_click", ({ points }) => {
    const [point] = points;
    const step = stepOf(point.curveNumber === 0 ? point.pointNumber[1] : frame.layout.xaxis.categoryarray.indexOf(point.x));
    if (step === null) return;
    const block = point.curveNumber === 0 ? frame.layout.meta.blocks[point.pointNumber[0]] : null;
    open(block === "predictions" ? null : block, step);
  });
  frame.on("plotly_hover", ({ points }) => {
    const [point] = points;
    if (point.curveNumber !== 0) return;
    [place.row, place.column] = point.pointNumber;
  });
}

const stepOf = (column) => frame.layout.meta.steps[column]?.[1] ?? null;

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };

frame.addEventListener("keydown", (event) => {
  const meta = frame.layout?.meta;
  if (!meta) return;
  const last = { row: meta.blocks.length - 1, column: meta.steps.length - 1 };
  if (event.key === "Enter") open(meta.blocks[place.row] === "predictions" ? null : meta.blocks[place.row], stepOf(place.column));
  else if (event.key === "Home") place.column = 0;
  else if (event.key === "End") place.column = last.column;
  else if (event.key in MOVES) {
    const [up, right] = MOVES[event.key];
    place.row = Math.min(last.row, Math.max(0, place.row + up));
    place.column = Math.min(last.column, Math.max(0, place.column + right));
  } else return;
  event.preventDefault();
  tell(meta);
});

// Says the cell under the keyboard's place, and shows its label where it is in sight.
function tell(meta) {
  const heat = frame._fullData?.[0];
  const value = heat?.customdata?.[place.row]?.[place.column];
  const [first, end] = meta.steps[place.column];
  const when = first === end ? `step ${first}` : `steps ${first} to ${end}`;
  say("cell", `${meta.rows[place.row]}, ${when}: ${title} ${value === null || Number.isNaN(value) ? "not measured" : number(value)}`);
  Plotly.Fx.hover(frame, [{ curveNumber: 0, pointNumber: [place.row, place.column] }]);
}
