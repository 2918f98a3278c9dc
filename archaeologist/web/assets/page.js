// The page: which campaign, what is shown of it, and when it is read again.

import { ofCampaign, read } from "./api.js";
import { chosen, findCampaigns, onChoice } from "./campaign.js";
import { showCheckpoints, view } from "./checkpoints.js";
import { byId, choose, later, make, moment, say } from "./dom.js";
import { follow } from "./events.js";
import { heard, refreshSoon, showJobs } from "./jobs.js";
import {
  chooseSkill, showCards, showCell, showFindings, showHealth, showLayer, showMovers, showProvenance, showSkill,
} from "./sections.js";
import { offerMetrics, showStrata } from "./strata.js";

const STATUS_SECONDS = 10;
let begun = false;
let bus = "nats://127.0.0.1:4222"; // its address, without secrets
let opened = null; // the log's last event when the server first answered: what came before is on the page
let contents = null;
let shown = null;

// Runs what fills a section; what goes wrong is said in it.
async function attempt(section, action) {
  const box = byId(section);
  const campaign = shown;
  try {
    await action();
    if (campaign === shown) box.querySelectorAll(":scope > .trouble").forEach((node) => node.remove());
  } catch (problem) {
    if (campaign !== shown) return;
    box.querySelectorAll(":scope > .trouble").forEach((node) => node.remove());
    box.append(make("p", { class: "trouble", role: "alert" }, problem.message));
  }
}

// Opens a block, a step, or both.
async function select(block, step) {
  const campaign = shown;
  if (block !== null) byId("block").value = block;
  if (step !== null) byId("step").value = String(step);
  await attempt("layers", async () => {
    if (block !== null) await showLayer(campaign, byId("block").value);
    if (campaign === shown && byId("step").value) await showCell(campaign, byId("block").value, Number(byId("step").value));
  });
}

const strata = () => attempt("strata", () => showStrata(shown, (block, step) => {
  select(block, step);
  byId("layers").scrollIntoView({ behavior: "smooth", block: "start" });
}));

function followFinding({ evidence }) {
  if (evidence.metric && contents.metrics.some(({ name }) => name === evidence.metric)) {
    byId("metric").value = evidence.metric;
    strata();
  }
  if (evidence.block && contents.blocks.includes(evidence.block)) select(evidence.block, evidence.step);
}

async function show() {
  const campaign = shown;
  const found = await read(ofCampaign(campaign, "contents"));
  if (campaign !== shown) return;
  contents = found;
  byId("empty").hidden = true;
  byId("shown").hidden = false;
  byId("rounding").hidden = !contents.has_rounding;
  offerMetrics(contents.metrics);
  byId("strata-shown").hidden = !contents.metrics.length;
  byId("strata-none").hidden = contents.metrics.length > 0;
  showProvenance(contents);
  // What is seen first comes first: a browser draws one figure at a time.
  await Promise.all([
    attempt("findings", () => showFindings(campaign, followFinding)),
    attempt("cards", () => showCards(campaign, select)),
    contents.metrics.length ? strata() : null,
  ]);
  if (campaign !== shown) return;
  await Promise.all([
    attempt("movers", () => showMovers(campaign, contents, select)),
    attempt("skills", async () => { if (chooseSkill(contents)) await showSkill(campaign, contents); }),
    attempt("health", () => showHealth(campaign, contents)),
    attempt("checkpoints", () => checkpoints(campaign)),
  ]);
}

async function checkpoints(campaign) {
  const steps = await showCheckpoints(campaign);
  if (campaign !== shown) return;
  choose(byId("step"), steps.map((step) => [step, step]), byId("step").value);
  choose(byId("block"), [...contents.blocks].reverse().map((name) => [name, name]), byId("block").value || (await farthest(campaign)));
  await select(byId("block").value, Number(byId("step").value));
}

// By the sum of relative L2, as the movers have it; the list comes by raw L2.
async function farthest(campaign) {
  const { top_movers: movers } = await read(ofCampaign(campaign, "top_movers", { n: 1000 }));
  const known = movers.filter((one) => one.total_relative !== null);
  return known.sort((one, other) => other.total_relative - one.total_relative)[0]?.layer ?? movers[0]?.layer;
}

function sayLines() {
  const { hero, campaign } = shown ?? { hero: "HERO", campaign: "CAMPAIGN" };
  const message = JSON.stringify({ hero_id: hero, campaign_id: campaign, checkpoint_step: 500, checkpoint_path: "checkpoint-500" });
  say("line-callback", `Trainer(..., callbacks=[ArchaeologistCallback(hero_id=${JSON.stringify(hero)}, campaign_id=${JSON.stringify(campaign)}, nats_url=${JSON.stringify(bus)})])`);
  say("line-publish", `nats pub -s ${bus} checkpoint.saved '${message}'`);
  say("line-watch", `archaeologist watch CHECKPOINTS --hero ${hero} --campaign ${campaign} --nats-url ${bus}`);
  say("line-analyze", "archaeologist analyze checkpoint-1000 --reference checkpoint-500");
}

function showEmpty() {
  sayLines();
  byId("empty").hidden = false;
  byId("shown").hidden = true;
  contents = null;
  for (const id of ["checkpoints-table", "left-out", "provenance-list"]) byId(id).replaceChildren();
}

function notice(text) {
  byId("notice").hidden = !text;
  say("notice", text);
}

// Reads everything again of the campaign that is chosen.
async function load() {
  byId("loading").hidden = false;
  const campaign = shown;
  try {
    if (campaign) await show();
    else showEmpty();
    notice("");
  } catch (problem) {
    if (campaign !== shown) return;
    if (problem.code === "campaign_missing") {
      notice("");
      showEmpty();
    } else {
      byId("shown").hidden = contents === null;
      notice(problem.message);
      // Summaries that are being made come later; so does a server.
      setTimeout(() => campaign === shown && load(), 3000);
    }
  } finally {
    if (campaign === shown) {
      byId("loading").hidden = true;
      document.documentElement.dataset.loaded = campaign ? `${campaign.hero}/${campaign.campaign}` : "nothing";
    }
  }
}

const reload = later(400, async () => {
  try {
    await findCampaigns();
  } catch {
    return; // the lamp says that the server does not answer
  }
  if (shown === null && chosen()) change();
  else load();
});

function change() {
  shown = chosen();
  contents = null;
  byId("shown").hidden = true;
  document.title = shown ? `${shown.campaign} · Archaeology` : "Archaeology";
  delete document.documentElement.dataset.loaded;
  // Blocks and steps of one campaign say nothing of another's.
  for (const id of ["block", "step", "skill", "cell-detail"]) byId(id).replaceChildren();
  showJobs(shown);
  follow(shown, {
    heard: (event, sequence) => {
      heard(event);
      if (event.type === "analysis.completed" && (opened === null || sequence > opened)) reload();
    },
    bus: () => { lamp(); refreshSoon(); },
  });
  load();
}

// The lamp, and campaigns that began meanwhile, with a bus or without.
async function look() {
  if (document.hidden) return;
  lamp();
  if (!begun) return;
  try {
    await findCampaigns();
  } catch {
    return; // the lamp says that the server does not answer
  }
  if (shown === null && chosen()) change();
}

async function lamp() {
  const node = byId("lamp");
  try {
    const { bus: link, log_sequence: sequence, queue, workers } = await read("/api/status");
    opened ??= sequence;
    if (bus !== link.url) {
      bus = link.url;
      sayLines();
    }
    const sum = (field) => Object.values(queue ?? {}).reduce((total, one) => total + one[field], 0);
    node.dataset.state = link.connected ? "up" : "down";
    say("lamp-words", link.connected
      ? `bus connected since ${moment(link.since)}${queue ? ` · ${sum("in_flight")} with a worker, ${sum("waiting")} waiting` : ""}${workers ? ` · ${crew(workers)}` : ""}`
      : `bus down since ${moment(link.since)}: files are read, jobs are not taken`);
  } catch (problem) {
    node.dataset.state = "down";
    say("lamp-words", problem.message);
  }
}

function crew({ idle, busy, draining, silent }) {
  const there = idle + busy + draining;
  return `${there || "no"} worker${there === 1 ? "" : "s"}${silent ? `, ${silent} silent` : ""}`;
}

async function begin() {
  byId("metric").addEventListener("change", () => {
    strata();
    select(byId("block").value, null);
  });
  byId("rows").addEventListener("change", strata);
  byId("block").addEventListener("change", () => select(byId("block").value, null));
  byId("step").addEventListener("change", () => select(null, Number(byId("step").value)));
  byId("view").addEventListener("click", () => byId("step").value && view(shown, byId("step").value));
  byId("skill").addEventListener("change", () => attempt("skills", () => showSkill(shown, contents)));
  onChoice(change);
  look();
  setInterval(look, STATUS_SECONDS * 1000);
  document.addEventListener("visibilitychange", look);
  try {
    await findCampaigns();
  } catch (problem) {
    byId("loading").hidden = true;
    notice(`${problem.message} Trying again …`);
    setTimeout(beginAgain, 3000);
    return;
  }
  begun = true;
  change();
}

async function beginAgain() {
  try {
    await findCampaigns();
    notice("");
    begun = true;
    change();
  } catch {
    setTimeout(beginAgain, 3000);
  }
}

begin();
