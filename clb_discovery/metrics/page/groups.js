// The services of status.json, the problems of each, and their order: those with problems first.

// The worst first: how many there are, and the words of the headline.
const KINDS = {
  unpublished: [(status) => status.unpublished.length, (many) => `${plural(many, "service")} not published in full`],
  empty: [(status) => status.empty_services.length, (many) => `${plural(many, "service")} without real servers`],
  failing: [(status) => count(status.virtual_servers, isFailing), failing],
  ejected: [(status) => count(status.virtual_servers, isEjected), (many) => `${plural(many, "real server")} ejected`],
  late: [(status) => status.sources.filter(isLate).length, (many) => `${plural(many, "source")} not fresh`],
  rejected: [(status) => status.sources.filter(isPartial).length, (many) => `${plural(many, "source")} partly rejected`],
  incomplete: [(status) => status.sources.filter(isIncomplete).length, incomplete],
};

const isAny = () => true;
const isOut = (server) => server.state === "ejected";
const isFailing = (server) => Boolean(server.check_failure); // also while it stays in, for want of others
const isEjected = (server) => isOut(server) && !isFailing(server); // after failed connects
const isLate = (source) => source.state !== "fresh";
const isIncomplete = (source) => !isLate(source) && Boolean(source.reason) && source.rejected === 0;
const isPartial = (source) => !isLate(source) && Boolean(source.reason) && !isIncomplete(source);

function failing(many) {
  return plural(many, "real server fails its checks", "real servers fail their checks");
}

function incomplete(many) {
  return plural(many, "source with an incomplete answer", "sources with incomplete answers");
}

// How many real servers of some virtual servers are so. One behind several VIPs of a service is one.
function count(virtual, is) {
  const keyIn = (one) => (server) => keyOf(titleOf(one), one.source, nameOf(server));
  return new Set(virtual.flatMap((one) => one.real_servers.filter(is).map(keyIn(one)))).size;
}

const keyOf = (...parts) => JSON.stringify(parts);
const titleOf = (virtual) => virtual.service || virtual.address;

// Each service with its source, its virtual servers and its problems.
function grouped(status) {
  const known = new Map(status.sources.map((source) => [source.name, source]));
  const groups = new Map();
  const groupOf = (name, source, parts = []) => {
    const key = keyOf(name, source);
    const unknown = { name: source ?? "", state: "not followed", reason: null };
    const from = known.get(source) ?? together(parts.map((part) => known.get(part.source)).filter(Boolean)) ?? unknown;
    if (!groups.has(key)) groups.set(key, { key, name, source, from, virtual: [] });
    return groups.get(key);
  };
  const fed = new Set();
  for (const virtual of status.virtual_servers) {
    groupOf(titleOf(virtual), virtual.source, virtual.parts).virtual.push(virtual);
    for (const one of [virtual, ...(virtual.parts ?? [])]) fed.add(one.source);
  }
  for (const source of status.sources) if (!fed.has(source.name)) groupOf(source.name, source.name);
  const unpublished = new Map(status.unpublished.map((one) => [one.source, one.reason]));
  const found = [...groups.values()].map((group) => {
    const reason = [unpublished.get(group.source), group.from.reason].filter(Boolean).join("; ");
    const isEmpty = group.virtual.length > 0 && !count(group.virtual, isAny);
    return { ...group, reason, isEmpty, troubles: troublesOf(group, isEmpty, unpublished.has(group.source)) };
  });
  return found.sort((a, b) => rank(a) - rank(b) || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
}

// The sources of the parts of a pool as one: the state of the worst, and the reasons of all.
function together(sources) {
  if (!sources.length) return undefined;
  const worst = sources.find((source) => source.state === "retrying") ?? sources.find(isLate) ?? sources[0];
  const reasons = sources.filter((source) => source.reason).map((source) => `${source.name}: ${source.reason}`);
  const rejected = sources.reduce((sum, source) => sum + source.rejected, 0);
  return { ...worst, name: sources.map((source) => source.name).join(" + "), reason: reasons.join("; ") || null, rejected };
}

// The problems of a service by kind, each with its words; a source that is not fresh has its own.
function troublesOf({ from, virtual }, isEmpty, isUnpublished) {
  const part = (is) => `${whole.format(count(virtual, is))} of ${whole.format(count(virtual, isAny))}`;
  const troubles = new Map();
  if (isUnpublished) troubles.set("unpublished", "not published in full");
  if (isEmpty) troubles.set("empty", "no real servers");
  if (count(virtual, isFailing)) troubles.set("failing", `${part(isFailing)} real servers fail their checks`);
  if (count(virtual, isEjected)) troubles.set("ejected", `${part(isEjected)} ejected`);
  if (isLate(from)) troubles.set("late", "");
  if (isPartial(from)) troubles.set("rejected", "partly rejected");
  if (isIncomplete(from)) troubles.set("incomplete", "answer incomplete");
  return troubles;
}

function rank({ troubles }) {
  const found = Object.keys(KINDS).findIndex((kind) => troubles.has(kind));
  return found < 0 ? Object.keys(KINDS).length : found;
}

function matches({ name, from, virtual }, text) {
  const has = (value) => value.toLowerCase().includes(text);
  const anyOf = (one) => has(vipOf(one)) || one.real_servers.some((server) => has(nameOf(server)));
  return !text || has(name) || has(from.name) || virtual.some(anyOf);
}
