// The page: headline, totals, services and controls, from one request every two seconds.

const EVERY = 2000; // ms between two requests; longer if a response takes long
const PATIENCE = 10_000; // ms for a response
const AT_MOST = 1000; // rows on the page
const AT_MOST_OF_ONE = 250; // rows of one virtual server
const HEALTHY = 20; // services without problems that are not collapsed
const LONGEST = 300; // characters shown of an error
const NAMED = 3; // VIPs in one remark

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
let latest = null; // the last status.json, its services, and when it came
let paused = false;
let polling = false;
let timer = 0; // of the next request
let writing = 0; // the timer of the next change of the address
const folded = new Map(); // the services that the user expanded or collapsed

function showTotals(status, now) {
  const named = serversOf(status.virtual_servers);
  for (const field of ["connects", "failures"]) sums[field].addAll(now, named.map(([key, server]) => [key, server[field]]));
  sums.refused.addAll(now, status.virtual_servers.map((one) => [vipOf(one), one.refused]));
  const { connects: sent, failures: failing, refused: refusing } = sums;
  tiles.connects(rateText(sent.rate()), "", sent);
  tiles.refused(rateText(refusing.rate()), "", refusing, refusing.rate() ? "bad" : "");
  tiles.failures(rateText(failing.rate()), "", failing, failing.rate() ? "bad" : "");
  tiles.active(whole.format(named.reduce((sum, [, server]) => sum + server.active, 0)));
  const out = count(status.virtual_servers, isOut);
  tiles.servers(whole.format(count(status.virtual_servers, isAny)), out ? `▲ ${whole.format(out)} ejected` : "none ejected");
  const late = status.sources.filter(isLate).length;
  const all = status.sources.length;
  tiles.sources(whole.format(all - late), `of ${whole.format(all)} fresh`, null, late ? "warn" : "");
}

// The headline has all problems, the worst first. Those of services lead to the first such service.
function showHealth({ datapath, sidecar, zone, ...status }) {
  const troubles = [];
  const ineffective = `the programs are not in effect: connects are not balanced: ${datapath.reason}`;
  if (!datapath.loaded) troubles.push({ text: "the data plane is not loaded: nothing is balanced" });
  else if (!datapath.effective) troubles.push({ text: ineffective });
  if (datapath.other_layouts.length) troubles.push({ text: "the programs of another version run first: see status" });
  if (datapath.load_error) troubles.push({ text: `the last load failed: ${datapath.load_error}` });
  const isUnfollowed = datapath.loaded && !datapath.outcomes && status.virtual_servers.some((one) => one.needs_outcomes);
  if (isUnfollowed) troubles.push({ text: "outcomes are not followed: no server is ejected" });
  for (const { instance, vips } of datapath.overlaps) {
    troubles.push({ text: `instance ${instance} serves the same VIPs: ${someNames(vips, NAMED)}` });
  }
  const rejected = `configuration rejected, the previous one stays in effect: ${sidecar.config_error}`;
  if (sidecar.config_error) troubles.push({ text: rejected });
  if (zone?.error) {
    const stays = zone.name ? `${zone.name} stays` : "pools do not follow zones";
    troubles.push({ text: `the zone of this host cannot be read, ${stays}: ${zone.error}` });
  }
  for (const [kind, [countIn, words]] of Object.entries(KINDS)) {
    const many = countIn(status);
    if (many) troubles.push({ kind, text: words(many) });
  }
  say(troubles);
}

function say(troubles) {
  const health = byId("health"); // a live region: it changes only if a text is another
  const wrong = troubles.length > 0;
  const before = (i) => (i ? "; " : wrong ? "▲ " : "● ");
  const shown = wrong ? troubles : [{ text: "balancing" }];
  const items = shown.map(({ kind, text }, i) => ({ kind, text: text.slice(0, LONGEST), before: before(i) }));
  sync(health, items, ({ kind, text }) => kind ?? text, trouble);
  set(health, "class", wrong ? "bad" : "good");
  const name = `clb-discovery ${byId("instance").textContent}`.trim();
  document.title = wrong ? `▲ ${name}` : name;
}

function trouble({ kind }) {
  const before = h("span");
  const words = kind ? h("a", { href: "#services" }) : h("span");
  if (kind) words.addEventListener("click", (event) => lead(event, kind));
  return {
    node: h("span", {}, before, words),
    update({ text, before: sign }) {
      put(before, sign);
      put(words, text);
    },
  };
}

// Lead to the first service with a problem of this kind, also if the filter hides it.
function lead(event, kind) {
  event.preventDefault();
  const group = latest.groups.find(({ troubles }) => troubles.has(kind));
  if (!group) return;
  folded.delete(group.key);
  if (!matches(group, filterText())) byId("filter").value = "";
  filtered();
  const view = viewsOf.get(byId("services")).get(group.key);
  view?.node.scrollIntoView();
  view?.toggle.focus({ preventScroll: true });
}

function show(status, now, clock) {
  put(byId("instance"), status.instance);
  const { datapath, sidecar, version } = status;
  const change = sidecar.last_sync ? `last change ${ago(sidecar.last_sync, clock)}` : "no change since start";
  const facts = [`version ${version}`, `kernel ${datapath.kernel}`, `loader ${datapath.loader}`];
  facts.push(datapath.cgroup ?? "not loaded", `process ${sidecar.pid}`, change);
  byId("facts").replaceChildren(...facts.map((fact) => h("span", { class: "fact" }, fact)));
  showHealth(status);
  showTotals(status, now);
  latest = { groups: grouped(status), now, clock, at: new Date() };
  showServices();
}

const filterText = () => byId("filter").value.trim().toLowerCase();

function showServices() {
  if (!latest) return;
  const { groups, now, clock } = latest;
  const [text, only] = [filterText(), byId("problems").checked];
  const wanted = groups.filter((group) => (!only || group.troubles.size) && matches(group, text));
  let healthy = 0;
  let room = AT_MOST;
  const rows = ({ virtual }) => virtual.reduce((sum, one) => sum + Math.min(one.real_servers.length, AT_MOST_OF_ONE), 1);
  const shown = [];
  for (const group of wanted) {
    const due = group.troubles.size > 0 || healthy++ < HEALTHY;
    const isOpen = folded.get(group.key) ?? (due && rows(group) <= room);
    if (room > 0) shown.push({ ...group, isOpen, now, clock, fold });
    room -= isOpen ? rows(group) : 1;
  }
  const focused = document.activeElement;
  sync(byId("services"), shown, (group) => group.key, service);
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true }); // it was moved
  const cut = shown.length < wanted.length ? `, the first ${whole.format(shown.length)} shown` : "";
  const closed = shown.filter(({ isOpen }) => !isOpen).length;
  const collapsed = closed ? `, ${whole.format(closed)} collapsed` : "";
  put(byId("shown"), `${whole.format(wanted.length)} of ${plural(groups.length, "service")}${cut}${collapsed}`);
  byId("none").hidden = wanted.length > 0;
  put(byId("nothing"), groups.length ? nothing(byId("filter").value.trim(), only) : "No services yet.");
  byId("all").hidden = !groups.length;
}

function nothing(text, only) {
  if (!text) return "No service has a problem.";
  return only ? `No service with a problem matches “${text}”.` : `Nothing matches “${text}”.`;
}

function fold(key, isOpen) {
  folded.set(key, isOpen);
  showServices();
}

// The filter is part of the address, so that a link leads to the same services.
function filtered() {
  showServices();
  const query = new URLSearchParams();
  if (filterText()) query.set("filter", byId("filter").value.trim());
  if (byId("problems").checked) query.set("problems", "1");
  clearTimeout(writing);
  const url = location.pathname + (query.size ? `?${query}` : "");
  writing = setTimeout(() => history.replaceState(null, "", url), 200); // browsers limit their number
}

function restoreFilter() {
  const query = new URLSearchParams(location.search);
  byId("filter").value = query.get("filter") ?? "";
  byId("problems").checked = query.has("problems");
}

class NoStatus extends Error {}

async function answered() {
  try {
    const answer = await fetch("status.json", { signal: AbortSignal.timeout(PATIENCE) });
    return [answer, await answer.text()];
  } catch {
    const since = latest ? ` since ${latest.at.toLocaleTimeString("en-GB")}` : "";
    throw new NoStatus(`no response from the sidecar${since}; the last published pools stay in effect`);
  }
}

async function ask() {
  const [answer, text] = await answered();
  if (!answer.ok) throw new NoStatus(`status.json returned ${answer.status}: ${text.trim()}`);
  show(JSON.parse(text), performance.now(), Date.parse(answer.headers.get("Date")) || Date.now());
}

async function poll() {
  if (polling || paused || document.hidden) return;
  polling = true;
  clearTimeout(timer);
  const began = performance.now();
  let wait = EVERY;
  let lost = false;
  try {
    await ask();
    wait = Math.max(EVERY, 4 * (performance.now() - began));
  } catch (error) {
    lost = true;
    const ours = !(error instanceof NoStatus);
    if (ours) console.error(error);
    say([{ text: ours ? `error in this page: ${error}` : error.message }]);
  }
  document.body.classList.toggle("lost", lost); // its rates are those of the last response
  polling = false;
  timer = setTimeout(poll, wait);
}

byId("filter").addEventListener("input", filtered);
byId("problems").addEventListener("change", filtered);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("all").addEventListener("click", () => {
  byId("filter").value = "";
  byId("problems").checked = false;
  filtered();
  byId("filter").focus(); // the button is gone
});
byId("pause").addEventListener("click", () => {
  paused = !paused;
  put(byId("pause"), paused ? "Resume" : "Pause");
  put(byId("since"), paused ? `paused at ${new Date().toLocaleTimeString("en-GB")}` : "");
  poll();
});
document.addEventListener("visibilitychange", poll);
document.addEventListener("keydown", (event) => {
  const box = byId("filter");
  if (event.key !== "/" || event.ctrlKey || event.altKey || event.metaKey || event.target === box) return;
  event.preventDefault();
  box.focus();
  box.select();
});
restoreFilter();
poll();
