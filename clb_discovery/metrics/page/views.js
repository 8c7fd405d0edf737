// What a service, its virtual servers and their real servers look like. A view has a node, and update() for new values.

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
  suspect: ["◐", "warn", "out"],
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
  const zone = h("td", { role: "cell", class: "zone", "data-label": "zone" });
  const shareCell = h("td", { role: "cell", class: "share live" }, h("div", {}, shareBar.node, h("span", {}, share, " ", target)));
  const rateCell = h("td", { role: "cell", class: "rate live" }, h("div", {}, line.node, rate));
  const node = h("tr", { role: "row" }, name, state, priority, weight, shareCell, rateCell, connects, active, failures);
  return {
    node,
    update({ server, history, all, most }) {
      const wanted = server.target_share;
      put(name, nameOf(server));
      put(zone, server.zone ?? "–");
      set(zone, "title", server.zone ?? "");
      place(zone, name, server.zone !== undefined);
      const found = server.suspect ? "suspect" : server.probing ? "probing" : server.state;
      const shown = found === "active" && !wanted ? "standby" : found;
      const [glyph, color, row] = LOOK[shown] ?? ["◆", "warn", ""];
      put(sign, glyph);
      put(word, shown);
      set(state, "class", `state ${color}`);
      set(state, "title", server.check_failure ? `check: ${server.check_failure}` : "");
      set(node, "class", row);
      const part = all ? history.grownIn(SHARE_OVER) / all : null;
      shareBar.update(part, wanted);
      put(share, part === null ? "–" : percent(part));
      put(target, wanted ? `(target ${percent(wanted)})` : "");
      line.update(history.rates(), most);
      put(rate, rateText(history.rate()));
      put(weight, whole.format(server.weight));
      put(priority, whole.format(server.priority));
      put(connects, whole.format(server.connects));
      put(active, whole.format(server.active));
      put(failures, whole.format(server.failures));
      failures.classList.toggle("bad", server.failures > 0);
      const causes = Object.entries(server.causes).filter(([, count]) => count);
      set(failures, "title", causes.map(([cause, count]) => `${whole.format(count)} ${cause.replace("_", " ")}`).join(", "));
    },
  };
}

// One virtual server: a table

function virtualServer() {
  const histories = new Map();
  const total = new Sum();
  const refusals = new History();
  const title = h("b");
  const [algorithm, cut, parts, zones] = [h("span"), h("span"), h("span"), h("span")];
  const [rate, refused] = [h("span", { class: "live" }), h("span", { class: "live" })];
  const head = ["Real server", "State", "Priority", "Weight", "Share", "Connects/s", "Connects", "Open", "Failed"];
  const classes = { State: "state", Priority: "small", Weight: "small", Share: "share", "Connects/s": "rate" };
  Object.assign(classes, { Connects: "count", Open: "small" });
  const columns = head.map((text) => h("th", { scope: "col", role: "columnheader", class: classes[text] ?? "" }, text));
  const zone = h("th", { scope: "col", role: "columnheader", class: "zone" }, "Zone");
  const body = h("tbody", { role: "rowgroup" });
  const without = h("td", { role: "cell", colspan: "10" });
  const none = h("tr", { role: "row" }, without);
  const node = h(
    "table",
    { role: "table" },
    h("caption", {}, h("span", {}, title), algorithm, rate, refused, cut, parts, zones),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...columns)),
    body,
  );
  return {
    node,
    update({ virtual, now, isEmpty }) {
      put(title, vipOf(virtual));
      put(algorithm, virtual.algorithm ?? "unknown scheduler");
      put(parts, (virtual.parts ?? []).map(partText).join("; "));
      parts.hidden = !virtual.parts;
      put(zones, (virtual.zones ?? []).filter((zone) => zone.own).map(zoneText).join("; "));
      zones.hidden = !virtual.zones;
      place(zone, columns[0], Boolean(virtual.zones));
      refusals.add(now, virtual.refused);
      put(refused, `${whole.format(virtual.refused)} refused` + (refusals.rate() ? ` (${rateText(refusals.rate())}/s)` : ""));
      refused.classList.toggle("bad", Boolean(refusals.rate()));
      const servers = virtual.real_servers;
      total.addAll(now, servers.map((server) => [nameOf(server), server.connects]));
      put(rate, `${rateText(total.rate())} connects/s`);
      const drawn = new Map(someOf(servers).map((server) => [nameOf(server), server]));
      put(cut, `${whole.format(drawn.size)} of ${whole.format(servers.length)} shown, ejected ones first`);
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
      const family = virtual.address.includes(":") ? "IPv6" : "IPv4";
      const normal = `○ no ${family} servers: connects to this VIP are refused`;
      put(without, isEmpty ? "▲ no real servers: connects are refused" : normal);
      set(without, "class", isEmpty ? "none bad" : "none");
      node.classList.toggle("empty", !servers.length);
      if (servers.length) none.remove();
      else body.append(none);
    },
  };
}

// A part of a pool that has several.
function partText({ source, real_servers: servers, target_share: share }) {
  return `${source ?? "an unknown source"}: ${plural(servers, "real server")}, target ${percent(share)}`;
}

// The zone of the host in a pool that follows zones.
function zoneText({ zone, real_servers: servers, target_share: share }) {
  return `zone ${zone}: ${plural(servers, "real server")}, target ${percent(share)}`;
}

// At most as many real servers as are shown of one virtual server: ejected ones before all others.
function someOf(servers) {
  if (servers.length <= AT_MOST_OF_ONE) return servers;
  return [...servers.filter(isOut), ...servers.filter((server) => !isOut(server))].slice(0, AT_MOST_OF_ONE);
}

// One service: a source and its virtual servers. A collapsed one is a line.

function service({ key, fold }) {
  const [title, sourceName, reason] = [h("bdi"), h("bdi"), h("bdi")]; // for names that are written from right to left
  const toggle = h("button", { type: "button" }, title);
  const [state, age] = [h("b"), h("span")];
  const source = h("p", { class: "source" }, sourceName, " ", state, " ", age);
  const [vips, rate] = [h("span"), h("span", { class: "live" })];
  const summary = h("p", { class: "summary" }, vips, rate);
  const wrong = h("p", { class: "wrong bad" });
  const why = h("p", { class: "reason warn" }, reason);
  const tables = h("div");
  const nothing = h("p", { class: "nothing" });
  const head = h("header", {}, h("h2", {}, toggle), source, summary, wrong, why);
  const node = h("section", { class: "service" }, head, tables, nothing);
  const total = new Sum();
  toggle.addEventListener("click", () => fold(key, toggle.getAttribute("aria-expanded") !== "true"));
  return {
    node,
    toggle,
    update({ name, from, reason: text, virtual, isEmpty, troubles, isOpen, now, clock }) {
      put(title, name);
      set(node, "aria-label", name);
      set(toggle, "aria-expanded", String(isOpen));
      node.classList.toggle("trouble", troubles.size > 0);
      node.classList.toggle("folded", !isOpen);
      put(wrong, [...troubles.values()].filter(Boolean).map((one) => `▲ ${one}`).join(" "));
      put(sourceName, from.name);
      const good = !isLate(from);
      put(state, `${good ? "●" : "▲"} ${from.state}`);
      set(state, "class", good ? "good" : "warn");
      const answer = from.last_success ? `answered ${ago(from.last_success, clock)}` : "no answer yet";
      put(age, from.last_success === undefined ? "" : answer);
      put(reason, text);
      why.hidden = !text;
      put(nothing, from.name.startsWith("catalog:") ? "The list of services that opt in." : "No virtual server yet.");
      nothing.hidden = virtual.length > 0 || !isOpen;
      const servers = serversOf(virtual);
      total.addAll(now, servers.map(([path, server]) => [path, server.connects]));
      put(vips, someNames(virtual.map(vipOf), 1));
      put(rate, `${plural(count(virtual, isAny), "real server")}, ${rateText(total.rate())} connects/s`);
      summary.hidden = isOpen || !virtual.length;
      const shown = isOpen ? virtual.map((one) => ({ virtual: one, now, isEmpty })) : [];
      sync(tables, shown, ({ virtual: one }) => vipOf(one), virtualServer);
    },
  };
}
