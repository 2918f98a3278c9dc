// Jobs that wait and run, with their progress; asking for one, and taking one back.

import { address, change, keepToken, read } from "./api.js";
import { byId, fill, later, make, number, say } from "./dom.js";

const SECONDS = 5;
const ENDED = new Set(["analysis.completed", "analysis.failed", "analysis.cancelled"]);

const rows = new Map();
const progress = new Map(); // what was heard last of each job
let campaign = null;
let timer = 0;

export function showJobs(which) {
  campaign = which;
  rows.clear();
  progress.clear();
  fill(byId("jobs"));
  return refresh();
}

export const refreshSoon = later(150, () => refresh());

async function refresh() {
  clearTimeout(timer);
  const which = campaign;
  try {
    const whose = { hero_id: which?.hero, campaign_id: which?.campaign, limit: 50 };
    const lists = await Promise.all(["running", "queued"].map((status) => read(address("/api/jobs", { ...whose, status }))));
    if (which === campaign) render(lists.flatMap(({ jobs }) => jobs));
  } catch (problem) {
    if (which !== campaign) return;
    rows.clear();
    fill(byId("jobs"), make("p", { class: "trouble" }, problem.status === 503 ? "Not known: the bus is down." : problem.message));
    timer = setTimeout(refresh, SECONDS * 1000);
  }
}

function render(jobs) {
  const keys = new Set(jobs.map((job) => job.job_key));
  for (const [key, row] of rows) {
    if (keys.has(key)) continue;
    row.node.remove();
    rows.delete(key);
  }
  const box = byId("jobs");
  for (const node of [...box.children]) if (![...rows.values()].some((row) => row.node === node)) node.remove();
  for (const job of jobs) {
    if (!rows.has(job.job_key)) {
      rows.set(job.job_key, rowOf(job));
      box.append(rows.get(job.job_key).node);
      if (progress.has(job.job_key)) move(rows.get(job.job_key), progress.get(job.job_key));
    }
    const row = rows.get(job.job_key);
    if (job.status === "queued") row.words.textContent = "waiting";
    else if (!row.isMoving) row.words.textContent = "running";
  }
  if (!jobs.length) fill(box, make("p", { class: "muted" }, "nothing"));
  else timer = setTimeout(refresh, SECONDS * 1000);
}

function rowOf(job) {
  const against = job.reference_step === null ? "" : ` against ${job.reference_step}`;
  const title = `${job.job_type}, step ${job.checkpoint_step}${against}`;
  const bar = make("progress", { max: 1, "aria-label": `Progress of ${title}` });
  const words = make("span", { class: "muted" }, job.status);
  const button = make("button", { type: "button", "aria-label": `Cancel ${title}` }, "Cancel");
  button.addEventListener("click", async () => {
    button.disabled = true;
    words.textContent = "cancelling …";
    try {
      const { message } = await change("DELETE", `/api/jobs/${encodeURIComponent(job.job_key)}`);
      words.textContent = message;
    } catch (problem) {
      words.textContent = problem.message;
      button.disabled = false;
      askForToken(problem);
    }
    refreshSoon();
  });
  return { node: make("div", { class: "job", "data-key": job.job_key }, make("p", {}, title), bar, make("p", { class: "bar" }, words, button)), bar, words, isMoving: false };
}

// What an event says of a job.
export function heard(event) {
  const row = rows.get(event.data?.job_key);
  if (event.type === "analysis.progress") {
    progress.set(event.data.job_key, event.data);
    if (row) move(row, event.data);
    return;
  }
  // A job that begins again begins at nothing.
  progress.delete(event.data?.job_key);
  if (ENDED.has(event.type) || event.type === "analysis.started") refreshSoon();
}

function move(row, { stage, bytes_read: done, bytes_total: whole, eta_sec: left }) {
  row.isMoving = true;
  const share = whole > 0 ? Math.min(1, done / whole) : 0;
  row.bar.value = share;
  const time = left === null || left === undefined ? "" : `, ${number(Math.round(left))} s left`;
  row.words.textContent = `${stage}: ${Math.round(100 * share)} %${time}`;
}

const form = byId("run-form");
const kind = byId("run-type");

kind.addEventListener("change", () => {
  const isDrift = kind.value === "layer_drift";
  byId("run-reference").required = isDrift;
  say("run-optional", isDrift ? "" : "(optional)");
  byId("run-options").hidden = isDrift;
});

function request() {
  const step = Number(byId("run-step").value);
  const reference = byId("run-reference").value === "" ? null : Number(byId("run-reference").value);
  const again = byId("run-force").checked ? { force: true } : {};
  const whose = { hero_id: campaign.hero, campaign_id: campaign.campaign, job_type: kind.value, ...again };
  if (kind.value === "layer_drift") return { ...whose, base_checkpoint_step: reference, target_checkpoint_step: step };
  const analyses = [...form.querySelectorAll("input[name=analyses]:checked")].map((box) => box.value);
  return {
    ...whose,
    checkpoint_step: step,
    ...(reference === null ? {} : { reference_checkpoint_step: reference }),
    compute_activations: byId("run-activations").checked,
    ...(analyses.length ? { analyses } : {}),
  };
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const status = byId("run-status");
  if (!campaign) {
    status.textContent = "There is no campaign yet; the lines above make one.";
    return;
  }
  keepTokenGiven();
  const button = byId("run-button");
  button.disabled = true;
  status.className = "";
  status.textContent = "asking …";
  try {
    const answer = await change("POST", "/api/jobs", request());
    status.className = "success";
    const words = answer.status === "done" ? "the same job is done already; tick “again, although it is done” to run it again" : answer.message;
    status.textContent = `${words} (${answer.job_id})`;
    refreshSoon();
  } catch (problem) {
    status.className = "trouble";
    status.textContent = problem.message;
    askForToken(problem);
  } finally {
    button.disabled = false;
  }
});

function keepTokenGiven() {
  const given = byId("token").value;
  if (given) keepToken(given);
}

function askForToken(problem) {
  if (problem.status !== 401) return;
  keepToken(null);
  byId("token-row").hidden = false;
  byId("token").focus();
}

byId("token").addEventListener("change", keepTokenGiven);

