// The analysed checkpoints, and all of one.

import { ofCampaign, read } from "./api.js";
import * as sections from "./definitions.js";
import { ABSENT, byId, facts, fill, make, moment, number, say, scalars, table } from "./dom.js";

const dialog = byId("detail");
byId("detail-close").addEventListener("click", () => dialog.close());

const MOST_LEFT_OUT = 20;

// Fills the table; the steps of all checkpoints, the newest first, which may be more than the table has.
export async function showCheckpoints(campaign) {
  const [found, list] = await Promise.all([
    read(ofCampaign(campaign, "tables/checkpoints")),
    read(ofCampaign(campaign, "layer_stats")),
  ]);
  const rows = found.rows.map(([step, at, ...rest]) => [step, moment(at), ...rest]);
  const cell = (step) => make("button", { type: "button", "aria-label": `View step ${step}`, onclick: () => view(campaign, step) }, "View");
  fill(byId("checkpoints-table"), table({ ...found, rows }, "checkpoints, the newest first", { title: "detail", cell }));
  const broken = list.left_out ?? [];
  fill(byId("left-out"), ...(broken.length ? [
    make("p", {}, `${broken.length} files could not be read and are left out:`),
    make("ul", {}, ...broken.slice(0, MOST_LEFT_OUT).map((one) => make("li", {}, `${one.file}: ${one.reason}`))),
  ] : []));
  return list.stats.map((one) => String(one.checkpoint_step)).reverse();
}

export async function view(campaign, step) {
  say("detail-title", `Checkpoint ${step}`);
  const link = byId("detail-download");
  link.href = ofCampaign(campaign, `layer_stats/${step}`);
  link.download = `${campaign.hero}-${campaign.campaign}-${step}.layer_stats.json`;
  fill(byId("detail-body"), make("p", { class: "muted" }, "Loading …"));
  dialog.showModal();
  try {
    fill(byId("detail-body"), ...parts(await read(link.href)));
  } catch (problem) {
    fill(byId("detail-body"), make("p", { class: "trouble", role: "alert" }, problem.message));
  }
}

const rowsOf = (found, fields) => Object.entries(found).map(([name, one]) =>
  [name, ...fields.map((field) => typeof one[field] === "boolean" ? (one[field] ? "yes" : "no") : typeof one[field] === "string" ? one[field] : number(one[field]))]);

const WEIGHTS = ["layer_type", "param_count", "l2", "growth", "nan_count", "inf_count"];
const DRIFT = ["relative_l2", "l2", "one_minus_cosine", "changed_fraction", "below_resolution", "total_l2", "sign_flips", "max_change"];
const ACTIVE = ["mean", "std", "percentile_1", "percentile_99", "rankme", "anisotropy", "massive_count", "dead_neurons"];

const grid = (title, found, fields, where) => Object.keys(found ?? {}).length
  ? [make("h3", {}, title), table({ head: ["block", ...fields.map((name) => sections.term(where, name))], rows: rowsOf(found, fields) }, title)] : [];

const list = (title, pairs) => (pairs.length ? [make("h3", {}, title), make("dl", {}, ...facts(pairs))] : []);

function parts(stats) {
  const out = stats.functional_drift?.output;
  return [
    ...list("Checkpoint", [
      ["path", stats.checkpoint_path], ["analysed at", moment(stats.created_at)],
      ["compared with", stats.reference_checkpoint_path ?? ABSENT], ...scalars(stats.global_drift_stats),
    ]),
    ...(stats.alerts.length ? [make("h3", {}, "Alerts"), make("ul", {}, ...stats.alerts.map((alert) =>
      make("li", { class: alert.severity }, `${alert.severity}: ${alert.message || alert.metric}`)))] : []),
    ...grid("Drift", stats.drift_stats, DRIFT, sections.DRIFT),
    ...grid("Weights", stats.weight_stats, WEIGHTS, sections.WEIGHTS),
    ...grid("Activations", stats.activation_stats, ACTIVE, sections.ACTIVATIONS),
    ...list("Predictions", [...scalars(stats.output_stats), ...scalars(out).map(([name, value]) => [`against the reference: ${name}`, value])]),
    ...list("Probes", [...scalars(stats.probe_info), ...scalars(stats.forward)]),
    ...list("Not computed", Object.entries(stats.not_computed)),
    ...list("Warnings", stats.warnings.map((warning, place) => [String(place + 1), warning])),
    ...list("Provenance", [
      ...scalars(stats, ["checkpoint_path", "reference_checkpoint_path", "created_at", "compute_duration_sec"]),
      ...scalars(stats.versions), ...scalars(stats.coverage),
    ]),
    ...list("Timings", [["whole", `${number(stats.compute_duration_sec)} s`],
      ...Object.entries(stats.timings).map(([name, seconds]) => [name, `${number(seconds)} s`])]),
  ];
}
