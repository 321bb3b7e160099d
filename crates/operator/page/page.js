"use strict";
// Fetches what the feeder saw, and puts it into the page, always as text, never as markup.

const LOOK = 2000;
const MOST_POINTS = 900;

const at = (id) => document.getElementById(id);
const number = (value) => (value == null ? "N/A" : value.toLocaleString("en"));
const charts = new Charts(at("charts"));
let samples = [];
let failing = 0;

/** Only what differs is written: a screen reader announces each change. */
function put(id, text) {
  if (at(id).textContent !== text) at(id).textContent = text;
}

function show(id, visible) {
  at(id).hidden = !visible;
}

/** Rows of a table; a cell is text, {number}, {words}, or {link, to, isChosen}. Cells stay, and with them the focus. */
function fill(id, rows) {
  const body = at(id);
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((row, line) => {
    const made = body.rows[line] ?? body.insertRow();
    row.forEach((cell, column) => {
      const kind = typeof cell === "object" ? Object.keys(cell)[0] : "";
      const place = made.cells[column] ?? made.insertCell();
      if (kind && kind !== "link") place.className = kind;
      const holder = kind === "link" ? place.firstChild ?? place.appendChild(document.createElement("a")) : place;
      if (kind === "link") Object.assign(holder, { href: cell.to, ariaCurrent: cell.isChosen ? "true" : null });
      const text = String(kind ? cell[kind] : cell);
      if (holder.textContent !== text) holder.textContent = text;
    });
  });
}

function percentDone({ moved, changed, failed, in_scope: all }) {
  const done = moved + changed + failed;
  return all == null ? "counting" : `${(Math.floor((done / Math.max(all, done, 1)) * 1000) / 10).toFixed(1)} %`;
}

/** One line for each, when there are several. */
function showRuns(runs, view) {
  show("all-runs", runs.length > 1 || (runs.length && !view));
  fill("runs", runs.map((run) => [
    { link: run.name, to: `?run=${run.id}`, isChosen: run.id === view?.run.id }, { words: run.paused ? `${run.state} ${run.paused}` : run.state },
    { number: percentDone(run) }, { number: number(run.moved) }, { number: number(run.in_scope) },
    { number: run.moved_per_second.toFixed(1) }, { number: run.eta ?? "N/A" }, { number: number(run.failed) },
    { number: run.consumers }, { words: run.last_action ?? "" },
  ]));
  show("one-run", view || !runs.length);
}

const KIND = { running: "good", "nothing to do": "good", paused: "warn", "throttled by S3": "warn", "database slow": "warn", waiting: "warn" };

function showRun({ run, state, reason, rows }) {
  put("run", `${run.name} (run ${run.id})`);
  const filter = run.row_filter ? ` where ${run.row_filter},` : "";
  put("what", `${run.table}:${filter} '${run.old_prefix}' → '${run.new_prefix}', s3://${run.source_bucket} → s3://${run.destination_bucket}`);
  put("word", state);
  at("word").dataset.kind = KIND[state] ?? "";
  put("reason", reason);
  const percent = percentDone(rows);
  if (rows.in_scope == null) at("bar").removeAttribute("value");
  else at("bar").value = parseFloat(percent) / 100;
  put("percent", percent);
  document.title = `${percent} ${state} – Bucket Brigade`;
}

function showFigures({ rows, rate, queue }) {
  put("moved", number(rows.moved));
  put("scope", number(rows.in_scope));
  put("changed", number(rows.changed));
  put("failed", number(rows.failed));
  put("rate", `${rate.over_a_minute.toFixed(1)}/s`);
  put("eta", rate.eta ?? "N/A");
  put("queue", queue.visible == null ? "N/A" : number(queue.visible + queue.in_flight));
  put("dead", number(queue.dead_letters));
  put("queue-error", queue.trouble ?? "");
  show("queue-error", queue.trouble);
}

function showWorkers(workers) {
  fill("workers", workers.map((one) => {
    const own = (value) => ({ number: one.role === "consumer" ? value : "–" });
    const commit = one.commit_seconds == null ? "N/A" : `${Math.floor(one.commit_seconds * 1000)} ms`;
    const state = one.reason ? `${one.state}: ${one.reason}` : one.state;
    return [one.worker, { words: state }, own(one.concurrency), own(one.in_hand), own(one.moved_per_second.toFixed(1)), { number: commit }];
  }));
}

function showFailures(failures) {
  show("no-failures", failures.length === 0);
  show("failure-table", failures.length > 0);
  fill("failures", failures.map((one) => [one.code, { number: number(one.rows) }]));
}

function showLimits({ rate, concurrency }) {
  const words = [];
  if (rate != null) words.push(`${rate} rows per second`);
  if (concurrency != null) words.push(`${concurrency} copies in flight`);
  put("limits", `Limits of the whole fleet: ${words.join(", ") || "none"}.`);
}

function thumbnail({ path, url }) {
  const item = document.createElement("li");
  const image = document.createElement("img");
  const name = document.createElement("span");
  image.src = url;
  image.alt = "";
  image.loading = "lazy";
  image.referrerPolicy = "no-referrer";
  name.textContent = path;
  item.append(image, name);
  item.dataset.url = url;
  return item;
}

/** Images that are shown already stay as they are. */
function showThumbnails(thumbnails) {
  show("gallery", thumbnails?.length);
  const known = new Map([...at("thumbnails").children].map((item) => [item.dataset.url, item]));
  const items = (thumbnails ?? []).map((one) => known.get(one.url) ?? thumbnail(one));
  if (items.some((item, index) => item !== at("thumbnails").children[index])) at("thumbnails").replaceChildren(...items);
}

function showPoints() {
  const speed = rates(samples);
  const rows = samples.map((one, index) => [
    clock(one.at), { number: number(one.moved) },
    { number: speed[index] == null ? "N/A" : speed[index].toFixed(1) },
    { number: one.commit_seconds == null ? "N/A" : `${(one.commit_seconds * 1000).toFixed(1)} ms` },
    { number: number(one.visible) }, { number: number(one.in_flight) },
  ]);
  fill("points", rows.slice(-60).reverse());
}

function showError(error) {
  put("error", error ? `These figures are old: ${error}` : "");
  show("error", error);
}

function showAll(status) {
  const { runs, view, sample } = status;
  showError(status.trouble);
  show("controls", status.has_controls && view);
  showThumbnails(status.thumbnails);
  if (!status.trouble) put("asof", new Date(sample.at * 1000).toLocaleString());
  showRuns(runs, view);
  if (!view) return;
  showRun(view);
  showFigures(view);
  showWorkers(view.workers);
  showFailures(view.failures);
  showLimits(view.run.limits);
}

/** Of the run that the page's own address chooses. */
const ofRun = (path) => path + location.search;

async function get(path) {
  const answer = await fetch(ofRun(path), { cache: "no-store" });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

/** The points that were seen since, or all of them anew when there are too many or some were missed. */
async function remember(sample) {
  const last = samples[samples.length - 1];
  if (last && sample.at <= last.at) return;
  const missed = !last || sample.at - last.at > 30;
  if (missed || samples.length > MOST_POINTS) samples = await get("history.json");
  else samples.push(sample);
  charts.draw(samples);
  showPoints();
}

async function look() {
  try {
    const status = await get("status.json");
    showAll(status);
    await remember(status.sample);
    failing = 0;
  } catch {
    failing += 1;
    if (failing > 1) showError("the feeder does not answer. It may have ended: see feeder status.");
  }
}

async function lookForEver() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((done) => setTimeout(done, LOOK));
  }
}

async function order(path, body) {
  const token = at("token").value;
  if (!token) {
    put("answer", "The token is missing.");
    at("token").focus();
    return;
  }
  put("answer", "…");
  try {
    const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
    const answer = await fetch(ofRun(path), { method: "POST", headers, body: JSON.stringify(body) });
    const words = await answer.text();
    put("answer", answer.status === 401 ? "That is not the token." : words.trim());
    await look();
  } catch {
    put("answer", "The feeder does not answer.");
  }
}

function on(form, act) {
  at(form).addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}

const given = (id) => (at(id).value === "" ? null : Number(at(id).value));
on("token-form", () => at("why").focus());
on("pause-form", () => order("pause", { reason: at("why").value || null }));
on("limit-form", () => order("limit", { rate: given("limit-rate"), concurrency: given("limit-copies") }));
at("resume").addEventListener("click", () => order("resume", {}));
at("lift").addEventListener("click", () => order("limit", { rate: null, concurrency: null, lift: true }));
lookForEver();
