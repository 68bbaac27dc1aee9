// The agent's page: asks the API for what there is, and follows what happens.
//
//   /v1/host, /v1/hosts, /v1/guests, /v1/jobs   how everything is: at first, and when something has happened
//   /v1/events                                  what happens: jobs as they go on; all else is a reason to look again
//
// Whatever comes from the agent becomes text, never markup: a guest's name may be anything.
"use strict";

const LOOK_AGAIN = 5000; // ms: figures change without events, too
const SETTLE = 250; // ms between an event and the look that it causes, so that many cause one
const PAST = 12;

const world = { host: null, hosts: [], guests: [], jobs: new Map() };
const $ = (id) => document.getElementById(id);

function element(tag, looks, ...content) {
  const made = document.createElement(tag);
  if (looks) made.className = looks;
  made.append(...content.map((part) => (part instanceof Node ? part : String(part ?? ""))));
  return made;
}
const cell = (content, looks) => element("td", looks, content);
const marked = (mark, looks, text) => {
  const made = element("span", `mark ${looks}`, text);
  made.dataset.mark = mark;
  return made;
};
function bar(done, total, stalled) {
  const made = element("progress", stalled ? "stalled" : "");
  made.max = Math.max(total, 1);
  made.value = done;
  return made;
}
function rows(id, made, columns, empty) {
  if (made.length === 0) {
    const only = cell(empty, "quiet");
    only.colSpan = columns;
    made = [element("tr", "", only)];
  }
  $(id).replaceChildren(...made);
}
const row = (...cells) => element("tr", "", ...cells);

function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (number >= 1024 && at < units.length - 1) { number /= 1024; at += 1; }
  const whole = Number.isInteger(number) || number >= 100;
  return `${whole ? Math.floor(number) : (Math.floor(number * 10) / 10).toFixed(1)} ${units[at]}`;
}
function age(seconds) {
  const units = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) return "0s";
  const [unit, size] = units[first];
  const rest = units[first + 1];
  const text = `${Math.floor(seconds / size)}${unit}`;
  return rest ? `${text} ${Math.floor((seconds % size) / rest[1])}${rest[0]}` : text;
}
function span(us) {
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 1e6) return `${(us / 1000).toFixed(us < 1e5 ? 1 : 0)} ms`;
  return us < 1e7 ? `${(us / 1e6).toFixed(1)} s` : age(us / 1e6);
}
const count = (number, thing) => [element("b", "", number), ` ${thing}${number === 1 ? "" : "s"}`];

const STATES = {
  running: ["●", "good"], starting: ["◌", "busy"], migrating: ["◐", "busy"],
  stopping: ["○", "quiet"], stopped: ["○", "quiet"], lost: ["✗", "alarm"], unclear: ["?", "alarm"],
};
const OUTCOMES = {
  done: ["✓", "good", "done"], cancelled: ["○", "quiet", "called off"], stalled: ["!", "busy", "waited in vain"],
  taken_back: ["↺", "busy", "taken back"], failed: ["✗", "alarm", "failed"],
  stranded: ["!", "alarm", "stranded"], incomplete: ["!", "busy", "incomplete"],
};
const PHASES = {
  preparing: "prepares", moving: "moves memory", arming: "gets the target ready", handing_over: "hands over",
  switching: "switches to its new home", travelling: "is on its way over several hosts",
  undoing: "goes back", landed: "has landed", ended: "has ended",
};
const LIVES = {
  alive: ["●", "good", "up"], gone: ["✗", "alarm", "not running"], elsewhere: ["●", "quiet", "on another machine"],
};

function where(job) {
  if (job.to) return `${job.host} → ${job.to}`;
  const verbs = { decouple: "to the pool", recouple: "to DRAM", settle: "to DRAM, after its arrival", rehoming: "to another pool",
    drain: "is emptied", rebalance: "evens hosts out" };
  return `${job.host}, ${verbs[job.kind] ?? job.kind}`;
}

function drawMoves() {
  const running = [...world.jobs.values()].filter((job) => job.phase !== "ended").sort((a, b) => a.created_ms - b.created_ms);
  const made = running.map((job) => {
    const moving = job.progress?.moving;
    const figures = [PHASES[job.phase] ?? job.phase];
    if (moving) {
      figures.push(`${bytes(moving.done_bytes)} of ${bytes(moving.total_bytes)}`, `${bytes(moving.bytes_per_s)}/s`);
      const left = (moving.total_bytes - moving.done_bytes) / moving.bytes_per_s;
      if (!moving.stall && Number.isFinite(left)) figures.push(`${age(left)} left`);
    }
    const step = job.progress && (!moving || moving.stall) ? element("div", moving?.stall ? "step alarm" : "step", job.progress.step) : "";
    return element("div", "move",
      element("div", "", element("span", "name", job.guest ?? "–"), " ", element("span", "quiet", where(job))),
      moving ? bar(moving.done_bytes, moving.total_bytes, Boolean(moving.stall)) : element("div"),
      element("div", "figures", figures.join(" · ")),
      ...(step ? [step] : []));
  });
  $("moves").replaceChildren(...(made.length ? made : [element("p", "empty", "Nothing moves.")]));
}

function drawPast() {
  const over = [...world.jobs.values()].filter((job) => job.phase === "ended").sort((a, b) => b.ended_ms - a.ended_ms);
  rows("past", over.slice(0, PAST).map((job) => {
    const [mark, looks, word] = OUTCOMES[job.outcome] ?? ["?", "quiet", job.outcome];
    const copied = job.copied_bytes;
    const still = job.blackout_ns == null ? "" : span(job.blackout_ns / 1000);
    const note = job.why ?? "";
    return row(
      cell(job.guest ?? "–", "name"), cell(where(job)), cell(marked(mark, looks, word)), cell(still, "number"),
      cell(copied ? bytes(copied) : "nothing", copied ? "number" : "number quiet"), cell(span((job.ended_ms - job.created_ms) * 1000), "number"),
      cell(`${age(Math.max(0, (Date.now() - job.ended_ms) / 1000))} ago`, "number quiet"), cell(note, "note"));
  }), 8, "Nothing has moved since this agent began.");
}

function place(memory) {
  if (!memory) return "";
  const pins = memory.pins + memory.holds;
  const percent = Math.min(99, Math.max(1, Math.floor((memory.pooled_bytes / Math.max(memory.total_bytes, 1)) * 100)));
  const text = { dram: "DRAM", pool: "pool", both: `${percent} % in the pool` }[memory.in] ?? memory.in;
  return pins ? `${text}, ${pins} pinned` : text;
}

function note(guest) {
  const protection = guest.protection && `protection ${guest.protection.state}, commit ${guest.protection.commit}`;
  return [protection, guest.detail].filter(Boolean).join("; ");
}

function drawGuests() {
  const wanted = $("filter").value.toLowerCase();
  const shown = world.guests.filter((guest) => [guest.name, guest.host ?? "", guest.state].some((word) => word.toLowerCase().includes(wanted)));
  rows("guests", shown.map((guest) => {
    const [mark, looks] = STATES[guest.state] ?? ["?", "quiet"];
    return row(
      cell(guest.name, "name"), cell(guest.host ?? "–"), cell(marked(mark, looks, guest.state)),
      cell(bytes(guest.memory_bytes), "number"), cell(place(guest.memory)), cell(guest.vcpus, "number"),
      cell(guest.epoch ?? "", "number"), cell(guest.uptime_s == null ? "" : age(guest.uptime_s), "number"), cell(note(guest), "note"));
  }), 9, wanted ? "No guest is like that." : "No guests. Start one with: nil vm run IMAGE --pool PATH --name NAME");
}

function drawHosts() {
  const pools = new Map((world.host?.pools ?? []).map((pool) => [pool.id, pool]));
  const name = (id) => pools.get(id)?.path.split("/").pop() ?? id;
  rows("hosts", world.hosts.map((host) => {
    const [mark, looks, word] = LIVES[host.life] ?? ["?", "quiet", host.life];
    const words = [word, host.standing === "alive" ? "" : host.standing, host.cordoned ? "cordoned" : ""].filter(Boolean).join(", ");
    const title = element("span", "name", host.name);
    return row(
      cell(host.here ? element("span", "", title, element("span", "quiet", " (this one)")) : title), cell(marked(mark, looks, words)),
      cell(host.guests, "number"), cell(host.pools.map(name).join(", ")), cell(host.address ?? "–", host.address ? "" : "quiet"));
  }), 5, "No hosts.");
  rows("pools", [...pools.values()].map((pool) => {
    const used = pool.total_bytes - pool.free_bytes;
    const path = element("span", "name", pool.path.split("/").pop());
    path.title = pool.path;
    return row(cell(path), cell(bar(used, pool.total_bytes, false)), cell(bytes(pool.free_bytes), "number"), cell(bytes(pool.total_bytes), "number"));
  }), 4, "No pools.");
}

function drawFigures() {
  $("host").textContent = world.host ? `host ${world.host.name}` : "";
  document.title = world.host ? `nil · ${world.host.name}` : "nil";
  const moves = [...world.jobs.values()].filter((job) => job.phase !== "ended");
  const rate = moves.reduce((sum, job) => sum + (job.progress?.moving?.bytes_per_s ?? 0), 0);
  const figures = [count(world.hosts.length, "host"), count(world.host?.pools.length ?? 0, "pool"), count(world.guests.length, "guest"), count(moves.length, "move")];
  if (rate) figures.push([element("b", "", `${bytes(rate)}/s`)]);
  $("figures").replaceChildren(...figures.map((figure) => element("li", "", ...figure)));
}

let pictured = "";
function drawFabric() {
  // The picture changes when hosts, pools or how full they are do: then it is fetched again.
  const now = JSON.stringify([world.hosts.map((host) => [host.name, host.life, host.cordoned, host.pools]),
    (world.host?.pools ?? []).map((pool) => [pool.id, Math.round((pool.free_bytes / Math.max(pool.total_bytes, 1)) * 50)])]);
  if (now === pictured) return;
  pictured = now;
  $("picture").alt = `hosts ${world.hosts.map((host) => host.name).join(", ")} and the pools that they have joined`;
  $("picture").src = `v1/fabric.svg?${Date.now()}`;
}

function draw() {
  drawFigures();
  drawMoves();
  drawPast();
  drawGuests();
  drawHosts();
  drawFabric();
}

async function ask(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

let looking = false;
async function look() {
  if (looking) return;
  looking = true;
  try {
    const [host, hosts, guests, jobs] = await Promise.all(["v1/host", "v1/hosts", "v1/guests", `v1/jobs?past=${PAST}`].map(ask));
    Object.assign(world, { host, hosts, guests, jobs: new Map(jobs.map((job) => [job.id, job])) });
    draw();
  } catch {
    linked(false);
  } finally {
    looking = false;
  }
}

let due = null;
function lookSoon() {
  due ??= setTimeout(() => { due = null; look(); }, SETTLE);
}

function linked(live) {
  $("link").className = live ? "live" : "lost";
  $("link").textContent = live ? "live" : "the agent does not answer; trying again";
}

function follow() {
  const events = new EventSource("v1/events");
  events.onopen = () => { linked(true); lookSoon(); };
  events.onerror = () => linked(false);
  for (const name of ["guest", "guest_gone", "host", "pool_lost", "missed"]) events.addEventListener(name, lookSoon);
  for (const name of ["job_begun", "job_ended"]) {
    events.addEventListener(name, (event) => {
      const { job } = JSON.parse(event.data);
      world.jobs.set(job.id, job);
      draw();
      lookSoon();
    });
  }
  events.addEventListener("job_progress", (event) => {
    const { job, progress } = JSON.parse(event.data);
    const known = world.jobs.get(job);
    if (!known) return lookSoon();
    known.progress = progress;
    // A step in words is another phase, which only the agent knows.
    if (!progress.moving) lookSoon();
    drawFigures();
    drawMoves();
  });
}

$("filter").addEventListener("input", drawGuests);
setInterval(() => { if (!document.hidden) look(); }, LOOK_AGAIN);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
look();
follow();
