
"use strict";
// Values of status.json become text nodes and fixed attributes, never markup.

const EVERY = 2000; // ms between two requests; longer if a response takes long
const SHARE_OVER = 60_000; // ms
const RATES_OVER = 120_000; // ms
const AT_MOST = 1000; // rows on the page
const AT_MOST_OF_ONE = 250; // rows of one virtual server
const LONGEST = 300; // characters shown of an error
const SVG = "http://www.w3.org/2000/svg";
const whole = new Intl.NumberFormat("en");
const fine = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const byId = (id) => document.getElementById(id);

// Small helpers for the document

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
function set(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

const viewsOf = new WeakMap();

// Make the children of a node those of the items, in their order. Existing children stay, and keep the focus.
function sync(parent, items, keyOf, make) {
  const old = viewsOf.get(parent) ?? new Map();
  const views = new Map();
  for (const item of items) views.set(keyOf(item), old.get(keyOf(item)) ?? make(item));
  for (const [key, view] of old) if (!views.has(key)) view.node.remove();
  viewsOf.set(parent, views);
  let next = parent.firstChild;
  for (const item of items) {
    const view = views.get(keyOf(item));
    if (view.node === next) next = next.nextSibling;
    else parent.insertBefore(view.node, next);
    view.update(item);
  }
}

// Numbers over time

class History {
  constructor() {
    this.samples = []; // [ms, total]; the total adds up growth, so it does not drop when a counter starts again
    this.total = 0;
    this.last = null;
  }
  add(now, counter) {
    if (this.samples.at(-1)?.[0] === now) return; // the same sample, drawn again
    if (this.last !== null) this.total += counter >= this.last ? counter - this.last : counter;
    this.last = counter;
    this.samples.push([now, this.total]);
    while (this.samples[0][0] < now - RATES_OVER) this.samples.shift();
  }
  rates() {
    return this.samples.slice(1).map(([time, total], i) => (1000 * (total - this.samples[i][1])) / (time - this.samples[i][0]));
  }
  rate() {
    return this.rates().at(-1) ?? null;
  }
  grownIn(milliseconds) {
    const now = this.samples.at(-1)[0];
    return this.total - this.samples.find(([time]) => time >= now - milliseconds)[1];
  }
}

// A sum over counters that come and go. It adds up the growth of each.
class Sum extends History {
  constructor() {
    super();
    this.counters = null;
  }
  addAll(now, entries) {
    const counters = new Map(entries);
    let sum = this.last ?? 0;
    for (const [key, counter] of this.counters ? counters : []) {
      const before = this.counters.get(key) ?? 0;
      sum += counter >= before ? counter - before : counter;
    }
    this.counters = counters;
    this.add(now, sum);
  }
}

const highest = (numbers) => numbers.reduce((most, number) => Math.max(most, number), 0);

function rateText(rate) {
  if (rate === null) return "–";
  return rate > 0 && rate < 100 ? fine.format(rate) : whole.format(Math.round(rate));
}
const percent = (part) => `${fine.format(100 * part)} %`;
const endpoint = (address, port) => `${address.includes(":") ? `[${address}]` : address}:${port || "*"}`;
const nameOf = (server) => endpoint(server.address, server.port);
const vipOf = (virtual) => `${endpoint(virtual.address, virtual.port)}/${virtual.protocol}`;
const plural = (count, one, many = `${one}s`) => `${whole.format(count)} ${count === 1 ? one : many}`;

function ago(then, now) {
  if (!then) return "never";
  const seconds = Math.max(0, Math.round((now - Date.parse(then)) / 1000));
  if (seconds < 120) return `${seconds} s ago`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min ago`;
  return seconds < 172_800 ? `${Math.floor(seconds / 3600)} h ago` : `${Math.floor(seconds / 86_400)} d ago`;
}

// A line of rates. All lines of one table have the same scale.
function spark() {
  const path = s("path");
  const steps = RATES_OVER / EVERY;
  const node = s("svg", { class: "spark", viewBox: `0 0 ${steps} 16`, preserveAspectRatio: "none", "aria-hidden": "true" }, path);
  return {
    node,
    update(rates, most) {
      const at = (rate, i) => `${steps - rates.length + 1 + i} ${(15 - (14 * rate) / (most || 1)).toFixed(2)}`;
      set(path, "d", rates.length > 1 ? `M${rates.map(at).join("L")}` : "");
    },
  };
}

function bar() {
  const part = s("rect", { class: "fill", height: "100%", rx: "2" });
  const mark = s("line", { class: "mark", y1: "0", y2: "100%" });
  const track = s("rect", { class: "track", width: "100%", height: "100%", rx: "2" });
  const node = s("svg", { class: "bar", "aria-hidden": "true" }, track, part, mark);
  return {
    node,
    update(share, target) {
      set(part, "width", percent(share ?? 0).replace(" ", ""));
      set(mark, "x1", percent(target).replace(" ", ""));
      set(mark, "x2", percent(target).replace(" ", ""));
      set(mark, "visibility", target ? "visible" : "hidden");
    },
  };
}

// One real server: a row

const LOOK = {
  active: ["●", "good", ""],
  standby: ["○", "", "idle"],
  probing: ["◐", "warn", "out"],
  ejected: ["▲", "bad", "out"],
};

function realServer() {
  const name = h("th", { scope: "row", role: "rowheader" });
  const [sign, word] = [h("span", { "aria-hidden": "true" }), h("span")];
  const state = h("td", { role: "cell", class: "state" }, sign, " ", word);
  const [share, target, shareBar] = [h("span", { class: "number" }), h("small"), bar()];
  const [rate, line] = [h("span", { class: "number" }), spark()];
  const cell = (label) => h("td", { role: "cell", "data-label": label });
  const [weight, priority, connects, active, failures] = ["weight", "priority", "connects", "open", "failed"].map(cell);
  const shareCell = h("td", { role: "cell", class: "share" }, h("div", {}, shareBar.node, h("span", {}, share, " ", target)));
  const rateCell = h("td", { role: "cell", class: "rate" }, h("div", {}, line.node, rate));
  const node = h("tr", { role: "row" }, name, state, priority, weight, shareCell, rateCell, connects, active, failures);
  return {
    node,
    update({ server, history, all, most }) {
      const wanted = server.target_share;
      put(name, nameOf(server));
      const found = server.probing ? "probing" : server.state;
      const shown = found === "active" && !wanted ? "standby" : found;
      const [glyph, color, row] = LOOK[shown] ?? ["◆", "warn", ""];
      put(sign, glyph);
      put(word, shown);
      set(state, "class", `state ${color}`);
      set(node, "class", row);
      const part = all ? history.grownIn(SHARE_OVER) / all : null;
      shareBar.update(part, wanted);
      put(share, part === null ? "–" : percent(part));
      put(target, wanted ? `of ${percent(wanted)}` : "");
      line.update(history.rates(), most);
      put(rate, rateText(history.rate()));
      put(weight, whole.format(server.weight));
      put(priority, whole.format(server.priority));
      put(connects, whole.format(server.connects));
      put(active, whole.format(server.active));
      put(failures, whole.format(server.failures));
      failures.classList.toggle("bad", server.failures > 0);
    },
  };
}

// One virtual server: a table

function virtualServer() {
  const histories = new Map();
  const total = new Sum();
  const refusals = new History();
  const title = h("b");
  const [algorithm, rate, refused, cut] = [h("span"), h("span"), h("span"), h("span")];
  const head = ["Real server", "State", "Priority", "Weight", "Share", "Connects/s", "Connects", "Open", "Failed"];
  const classes = { State: "state", Priority: "small", Weight: "small", Share: "share", "Connects/s": "rate" };
  Object.assign(classes, { Connects: "count", Open: "small" });
  const columns = head.map((text) => h("th", { scope: "col", role: "columnheader", class: classes[text] ?? "" }, text));
  const body = h("tbody", { role: "rowgroup" });
  const none = h("tr", { role: "row" }, h("td", { role: "cell", class: "state none bad", colspan: "9" }));
  none.firstChild.append("▲ no real servers: connects are refused");
  const node = h(
    "table",
    { role: "table" },
    h("caption", {}, h("span", {}, title), algorithm, rate, refused, cut),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...columns)),
    body,
  );
  return {
    node,
    update({ virtual, now }) {
      put(title, vipOf(virtual));
      put(algorithm, virtual.algorithm ?? "unknown scheduler");
      refusals.add(now, virtual.refused);
      put(refused, `${whole.format(virtual.refused)} refused` + (refusals.rate() ? ` (${rateText(refusals.rate())}/s)` : ""));
      refused.classList.toggle("bad", Boolean(refusals.rate()));
      const servers = virtual.real_servers;
      total.addAll(now, servers.map((server) => [nameOf(server), server.connects]));
      put(rate, `${rateText(total.rate())} connects/s`);
      const drawn = new Map(servers.slice(0, AT_MOST_OF_ONE).map((server) => [nameOf(server), server]));
      put(cut, drawn.size < servers.length ? `the first ${whole.format(drawn.size)} of ${whole.format(servers.length)}` : "");
      cut.hidden = drawn.size === servers.length;
      for (const key of histories.keys()) if (!drawn.has(key)) histories.delete(key);
      for (const [key, server] of drawn) {
        if (!histories.has(key)) histories.set(key, new History());
        histories.get(key).add(now, server.connects);
      }
      const most = highest([...histories.values()].flatMap((history) => history.rates()));
      const all = total.grownIn(SHARE_OVER);
      const rows = [...drawn].map(([key, server]) => ({ key, server, history: histories.get(key), all, most }));
      sync(body, rows, (row) => row.key, realServer);
      node.classList.toggle("empty", !servers.length);
      if (servers.length) none.remove();
      else body.append(none);
    },
  };
}

// One service: a source and its virtual servers

function service() {
  const [title, sourceName, reason] = [h("bdi"), h("bdi"), h("bdi")]; // for names that are written from right to left
  const [state, age] = [h("b"), h("span")];
  const source = h("p", { class: "source" }, sourceName, " ", state, " ", age);
  const why = h("p", { class: "reason warn" }, reason);
  const tables = h("div");
  const nothing = h("p", { class: "nothing" });
  const node = h("section", { class: "service" }, h("header", {}, h("h2", {}, title), source, why), tables, nothing);
  return {
    node,
    update({ name, from, virtual, now, clock }) {
      put(title, name);
      set(node, "aria-label", name);
      put(sourceName, from.name);
      const good = from.state === "fresh";
      put(state, `${good ? "●" : "▲"} ${from.state}`);
      set(state, "class", good ? "good" : "warn");
      put(age, from.last_success === undefined ? "" : `answered ${ago(from.last_success, clock)}`);
      put(reason, from.reason ?? "");
      why.hidden = !from.reason;
      put(nothing, from.name.startsWith("catalog:") ? "The list of services that opt in." : "No virtual server yet.");
      nothing.hidden = virtual.length > 0;
      sync(tables, virtual.map((one) => ({ virtual: one, now })), ({ virtual: one }) => vipOf(one), virtualServer);
    },
  };
}

// The whole page

function grouped(status) {
  const known = new Map(status.sources.map((source) => [source.name, source]));
  const groups = new Map();
  const groupOf = (name, source) => {
    const key = JSON.stringify([name, source]);
    const from = known.get(source) ?? { name: source ?? "", state: "not followed", reason: null };
    if (!groups.has(key)) groups.set(key, { key, name, from, virtual: [] });
    return groups.get(key);
  };
  const fed = new Set();
  for (const virtual of status.virtual_servers) {
    groupOf(virtual.service ?? vipOf(virtual), virtual.source).virtual.push(virtual);
    fed.add(virtual.source);
  }
  for (const source of status.sources) if (!fed.has(source.name)) groupOf(source.name, source.name);
  return [...groups.values()].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
}

const isOut = (server) => server.state === "ejected";
const hasProblem = ({ from, virtual }) =>
  from.state !== "fresh" || from.reason || virtual.some((one) => !one.real_servers.length || one.real_servers.some(isOut));

function matches({ name, from, virtual }, text) {
  const has = (value) => value.toLowerCase().includes(text);
  const anyOf = (one) => has(vipOf(one)) || one.real_servers.some((server) => has(nameOf(server)));
  return !text || has(name) || has(from.name) || virtual.some(anyOf);
}

function tile(text) {
  const [number, note, line] = [h("span"), h("small"), spark()];
  const node = h("div", {}, h("dt", {}, text), h("dd", {}, number, " ", note), h("dd", {}, line.node));
  byId("totals").append(node);
  return (value, remark = "", history = null, look = "") => {
    put(number, value);
    put(note, remark);
    set(number, "class", look);
    if (history) line.update(history.rates(), highest(history.rates()));
  };
}

const tiles = {
  connects: tile("Connects/s"),
  refused: tile("Refused/s"),
  failures: tile("Failed/s"),
  active: tile("Open connections"),
  servers: tile("Real servers"),
  sources: tile("Sources"),
};
const sums = { connects: new Sum(), failures: new Sum(), refused: new Sum() };
let latest = null;
let paused = false;

function showTotals(status, now) {
  const named = status.virtual_servers.flatMap((one) =>
    one.real_servers.map((server) => [`${vipOf(one)} ${nameOf(server)}`, server]),
  );
  for (const field of ["connects", "failures"]) sums[field].addAll(now, named.map(([key, server]) => [key, server[field]]));
  sums.refused.addAll(now, status.virtual_servers.map((one) => [vipOf(one), one.refused]));
  const out = named.filter(([, server]) => isOut(server)).length;
  const fresh = status.sources.filter((source) => source.state === "fresh").length;
  const { connects: sent, failures: failing, refused: refusing } = sums;
  tiles.connects(rateText(sent.rate()), "", sent);
  tiles.refused(rateText(refusing.rate()), "", refusing, refusing.rate() ? "bad" : "");
  tiles.failures(rateText(failing.rate()), "", failing, failing.rate() ? "bad" : "");
  tiles.active(whole.format(named.reduce((sum, [, server]) => sum + server.active, 0)));
  tiles.servers(whole.format(named.length), out ? `▲ ${whole.format(out)} ejected` : "none ejected");
  const late = fresh < status.sources.length;
  tiles.sources(whole.format(fresh), `of ${whole.format(status.sources.length)} fresh`, null, late ? "warn" : "");
  const empty = status.virtual_servers.filter((one) => !one.real_servers.length).length;
  const refused = status.sources.filter((source) => source.state === "fresh" && source.reason).length;
  return { out, late: status.sources.length - fresh, empty, refused };
}

function showHealth(status, { out, late, empty, refused }) {
  const { datapath, sidecar } = status;
  const troubles = [];
  if (!datapath.effective) troubles.push(`not balancing: ${datapath.reason}`);
  const unpublished = status.unpublished.map((one) => one.service);
  if (unpublished.length) troubles.push(`not published, no room: ${unpublished.slice(0, 3).join(", ")}`);
  if (sidecar.config_error) troubles.push(`configuration refused: ${sidecar.config_error}`);
  if (empty) troubles.push(`${plural(empty, "pool")} empty`);
  if (out) troubles.push(`${plural(out, "real server")} ejected`);
  if (late) troubles.push(`${plural(late, "source")} not fresh`);
  if (refused) troubles.push(`${plural(refused, "source")} refused in part`);
  say(troubles.length ? `▲ ${troubles.join("; ")}` : "● balancing", troubles.length ? "bad" : "good");
  document.title = `${troubles.length ? "▲ " : ""}clb-discovery ${status.instance}`;
}

function say(text, look) {
  put(byId("health"), text); // a live region: put() changes it only if the text is another
  set(byId("health"), "class", look);
}

function show(status, now, clock) {
  put(byId("instance"), status.instance);
  const { datapath, sidecar, version } = status;
  const facts = [`version ${version}`, `kernel ${datapath.kernel}`, `loader ${datapath.loader}`, datapath.cgroup ?? "not loaded"];
  facts.push(`process ${sidecar.pid}`, `last change ${ago(sidecar.last_sync, clock)}`);
  byId("facts").replaceChildren(...facts.map((fact) => h("span", { class: "fact" }, fact)));
  showHealth(status, showTotals(status, now));
  latest = { status, now, clock };
  showServices();
}

function showServices() {
  if (!latest) return;
  const { status, now, clock } = latest;
  const text = byId("filter").value.trim().toLowerCase();
  const groups = grouped(status);
  const wanted = groups.filter((group) => (!byId("problems").checked || hasProblem(group)) && matches(group, text));
  let room = AT_MOST;
  const rows = ({ virtual }) => virtual.reduce((sum, one) => sum + Math.min(one.real_servers.length, AT_MOST_OF_ONE), 1);
  const shown = wanted.filter((group) => (room -= rows(group)) >= 0);
  sync(byId("services"), shown.map((group) => ({ ...group, now, clock })), (group) => group.key, service);
  const cut = shown.length < wanted.length ? `the first ${whole.format(shown.length)} of ` : "";
  put(byId("shown"), `${cut}${whole.format(wanted.length)} of ${plural(groups.length, "service")}`);
}

class NoStatus extends Error {}

async function answered() {
  try {
    const answer = await fetch("status.json");
    return [answer, await answer.text()];
  } catch {
    throw new NoStatus("the sidecar does not answer; the kernel goes on balancing over what was published last");
  }
}

async function ask() {
  const began = performance.now();
  const [answer, text] = await answered();
  if (!answer.ok) throw new NoStatus(`no status, but ${answer.status}: ${text.trim().slice(0, LONGEST)}`);
  show(JSON.parse(text), performance.now(), Date.parse(answer.headers.get("Date")) || Date.now());
  return performance.now() - began;
}

async function poll() {
  let took = 0;
  if (!paused && !document.hidden) {
    try {
      took = await ask();
    } catch (error) {
      const ours = !(error instanceof NoStatus);
      if (ours) console.error(error);
      say(`▲ ${ours ? `this page fails: ${error}` : error.message}`, "bad");
    }
  }
  setTimeout(poll, Math.max(EVERY, 4 * took));
}

byId("filter").addEventListener("input", showServices);
byId("problems").addEventListener("change", showServices);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("pause").addEventListener("click", () => {
  paused = !paused;
  set(byId("pause"), "aria-pressed", String(paused));
});
poll();
