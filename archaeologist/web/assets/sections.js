// The sections that are read: findings, cards, movers, layer detail, skills, health, provenance.

import { ofCampaign, read } from "./api.js";
import { ACTIVATIONS, DRIFT, WEIGHTS, term } from "./definitions.js";
import { byId, choose, facts, fill, make, say, scalars, table } from "./dom.js";
import { draw, redraw } from "./figures.js";
import { metricOfParts } from "./strata.js";

const ICONS = { critical: "✕", warning: "▲", success: "✓", info: "·" };
const WORDS = { critical: "Critical", warning: "Warning", success: "Good", info: "Note" };
const NAMESPACE = "http://www.w3.org/2000/svg";

export const severityOf = (severity) =>
  make("span", { class: "severity" }, make("span", { "aria-hidden": "true" }, ICONS[severity] ?? ICONS.info), ` ${WORDS[severity] ?? WORDS.info}`);

// The findings; `follow` is told which one's evidence is wanted.
export async function showFindings(campaign, follow) {
  const { findings } = await read(ofCampaign(campaign, "findings"));
  fill(byId("findings-list"), ...findings.map((found) => make("li", { class: found.severity },
    make("p", { class: "said" }, severityOf(found.severity), ` ${found.text}`),
    make("p", { class: "basis" }, found.basis ? `${found.basis} · ` : "",
      make("a", { href: `#${found.section}`, onclick: () => follow(found) }, "evidence")))));
}

export async function showCards(campaign, open) {
  const { cards } = await read(ofCampaign(campaign, "cards"));
  fill(byId("cards"), ...cards.map((card) => make("div", { class: "card" },
    make("h3", {}, card.title),
    make("p", { class: "value" }, card.block
      ? make("a", { href: "#layers", title: card.block, onclick: () => open(card.block, null) }, card.value) : card.value),
    trend(card.trend),
    make("p", { class: "muted" }, card.detail))));
}

// A line from 0 up in a box of 120 by 28, broken where there is no value.
function trend(values) {
  const known = values.filter((value) => value !== null);
  if (known.length < 2) return null;
  const top = Math.max(...known) || 1;
  const box = document.createElementNS(NAMESPACE, "svg");
  box.setAttribute("viewBox", "0 0 120 28");
  box.setAttribute("preserveAspectRatio", "none");
  box.setAttribute("aria-hidden", "true");
  let points = [];
  for (const [place, value] of [...values, null].entries()) {
    if (value !== null) points.push(`${2 + (116 * place) / (values.length - 1)},${26 - (24 * Math.max(0, value)) / top}`);
    else if (points.length) {
      const line = document.createElementNS(NAMESPACE, "polyline");
      line.setAttribute("points", points.join(" "));
      box.append(line);
      points = [];
    }
  }
  return box;
}

export async function showMovers(campaign, contents, open) {
  byId("movers-shown").hidden = !contents.has_movers;
  byId("movers-none").hidden = contents.has_movers;
  if (!contents.has_movers) return;
  const listen = (frame) => frame.on("plotly_click", ({ points }) => {
    const { meta, yaxis } = frame.layout;
    const place = yaxis.categoryarray.indexOf(points[0].y);
    open(meta.blocks[meta.blocks.length - 1 - place], null);
  });
  await draw("movers", await read(ofCampaign(campaign, "figures/movers")), { listen });
  const classes = Object.entries(contents.classes).map(([name, count]) => `${count} ${name}`).join(", ");
  say("classes", classes && `${classes}. Over the newest ${contents.window} checkpoints; directions are estimated from sketches.`);
}

let marked = null;

// A line in every panel at the step that is looked at; the choice above says what the title would.
const mark = ({ layout }) => ({
  title: undefined,
  margin: { ...layout.margin, t: 48 },
  shapes: marked === null ? [] : [
    { type: "line", xref: "x", yref: "paper", x0: marked, x1: marked, y0: 0, y1: 1, line: { width: 1.5, dash: "dot", color: "#8a8272" } },
  ],
});

export async function showLayer(campaign, block) {
  const metric = metricOfParts();
  const drawing = await read(ofCampaign(campaign, "figures/layer", { block, metric }));
  if (byId("block").value === block && metricOfParts() === metric) await draw("layer", drawing, { more: mark });
}

const CELL = ["layer_type", "param_count", "l2", "growth", "nan_count", "inf_count"];
const MOVED = ["relative_l2", "l2", "one_minus_cosine", "changed_fraction", "below_resolution", "sign_flips", "max_change"];
const ACTIVE = ["mean", "std", "percentile_1", "percentile_99", "rankme", "anisotropy", "massive_count", "dead_neurons"];

const part = (found, names, prefix, sections) => names.flatMap((name) => scalars({ [name]: found?.[name] ?? null })
  .map(([words, value]) => [term(sections, name, `${prefix} ${words}`), value]));

// What was found of a block at a step.
export async function showCell(campaign, block, step) {
  marked = step;
  redraw("layer");
  say("cell-title", `At step ${step}`);
  const stats = await read(ofCampaign(campaign, `layer_stats/${step}`));
  if (byId("block").value !== block || marked !== step) return;
  const pairs = [
    ["compared with", stats.reference_checkpoint_step === null ? "nothing" : `step ${stats.reference_checkpoint_step}`],
    ...part(stats.drift_stats[block], MOVED, "drift:", DRIFT),
    ...part(stats.weight_stats[block], CELL, "weights:", WEIGHTS),
    ...part(stats.activation_stats[block], ACTIVE, "activations:", ACTIVATIONS),
  ];
  fill(byId("cell-detail"), ...facts(pairs.length > 1 ? pairs : [["nothing", "this block is not in this artifact"]]));
}

export function chooseSkill(contents) {
  const has = contents.skills.length > 0;
  byId("skills-none").hidden = has;
  byId("skills-shown").hidden = !has;
  choose(byId("skill"), contents.skills.map(({ skill }) => [skill, skill]), byId("skill").value);
  return has;
}

export async function showSkill(campaign, contents) {
  const skill = byId("skill").value;
  const found = contents.skills.find((one) => one.skill === skill);
  if (!found) return;
  say("skill-size", `${found.intervals_used} of ${found.intervals} intervals used`);
  say("supports", found.supports);
  say("does-not-support", found.does_not_support);
  byId("impact-shown").hidden = !found.has_impact;
  for (const name of ["scores", ...(found.has_impact ? ["impact"] : [])]) {
    const drawing = await read(ofCampaign(campaign, `figures/${name}`, { skill }));
    if (byId("skill").value === skill) await draw(name, drawing);
  }
}

export async function showHealth(campaign, contents) {
  byId("health-shown").hidden = !contents.has_health;
  byId("health-none").hidden = contents.has_health;
  const [drawing, alerts] = await Promise.all([
    contents.has_health ? read(ofCampaign(campaign, "figures/health")) : null,
    read(ofCampaign(campaign, "tables/alerts")),
  ]);
  fill(byId("alerts"), ...(alerts.rows.length ? [table(alerts, "alerts")] : []));
  const none = contents.has_probes ? "No alert was raised." : "No alert was raised; no checkpoint was run on probes, so only weights were looked at.";
  say("alerts-words", alerts.rows.length
    ? "An alert is a sign, not a proof. A warning that stays is told once, so a checkpoint without one is not a clean bill of health."
    : none);
  if (drawing) await draw("health", drawing);
}

export function showProvenance(contents) {
  fill(byId("provenance-list"), ...facts(contents.provenance));
}

