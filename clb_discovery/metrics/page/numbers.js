// Numbers over time, and numbers and names as text.

const SHARE_OVER = 60_000; // ms
const RATES_OVER = 120_000; // ms
const whole = new Intl.NumberFormat("en");
const fine = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

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

// All real servers of some virtual servers, each with a name of its own.
function serversOf(virtual) {
  return virtual.flatMap((one) => one.real_servers.map((server) => [`${vipOf(one)} ${nameOf(server)}`, server]));
}

function someNames(names, most) {
  const more = names.length > most ? ` and ${whole.format(names.length - most)} more` : "";
  return names.slice(0, most).join(", ") + more;
}

function ago(then, now) {
  const seconds = Math.max(0, Math.round((now - Date.parse(then)) / 1000));
  if (seconds < 120) return `${seconds} s ago`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min ago`;
  return seconds < 172_800 ? `${Math.floor(seconds / 3600)} h ago` : `${Math.floor(seconds / 86_400)} d ago`;
}
