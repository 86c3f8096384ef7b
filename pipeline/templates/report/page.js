// --- which rows, in which order, as cards or as a table --------------------------------------------------------------
const app = byId("app"), bar = byId("bar"), more = byId("more"), none = byId("none"), busy = byId("busy"), first = byId("first");
const BATCH = { cards: 24, table: 100 };
const SORTS = ["row", ...(data.scored ? ["score"] : []), ...(data.gated ? ["gate"] : []), "consistency", "corrections", "searches", "duration", "time", "calls", "bytes"];
// of a run that was evaluated, the worst come first
const USUAL = { status: "all", q: "", sort: data.scored ? "score" : "row", dir: "asc", view: "cards", all: "" };
const state = { ...USUAL };
let chosen = [], drawn = 0, turn = 0, drawing = false;

const say = (text) => { busy.hidden = !text; busy.textContent = text; };
const failedToLoad = (error) => say(`A file of this page cannot be loaded: ${error.message}. It lies beside the page, and has to be moved with it.`);
// of a page of many rows, what it shows before it is asked for anything
const isFirst = () => pieces && !state.all && ["status", "q", "sort", "dir"].every((name) => state[name] === USUAL[name]);

const lacking = () => {
  if (isFirst()) return null;
  const waits = [needKeys(), state.q.trim() ? needHay(say) : null].filter(Boolean);
  return waits.length ? Promise.all(waits) : null;
};
const choose = () => {
  say("");
  const labels = [...bar.querySelectorAll("[data-count]")];
  if (isFirst()) {
    chosen = data.positions;
    const counts = { all: total, ok: total - data.failed, failed: data.failed };
    for (const label of labels) label.textContent = count(counts[label.dataset.count]);
  } else {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean), sign = state.dir === "asc" ? 1 : -1, key = keys[state.sort];
    const found = [];
    for (let at = 0; at < total; at += 1) if (words.every((word) => hay[at].includes(word))) found.push(at);
    const ok = found.filter((at) => keys.ok[at]).length, counts = { all: found.length, ok, failed: found.length - ok };
    for (const label of labels) label.textContent = count(counts[label.dataset.count]);
    chosen = state.status === "all" ? found : found.filter((at) => (keys.ok[at] === 1) === (state.status === "ok"));
    const known = (at) => key[at] !== null && key[at] !== undefined;
    chosen.sort((a, b) => known(a) !== known(b) ? (known(a) ? -1 : 1) : known(a) && key[a] !== key[b] ? sign * (key[a] - key[b]) : a - b);
  }
  first.hidden = !isFirst();
  byId("shown").textContent = chosen.length === total ? `${count(total)} rows` : `${count(chosen.length)} of ${count(total)} rows`;
  none.hidden = chosen.length > 0;
  none.textContent = total ? "No row matches the filter." : "This run has no rows yet.";
  clear();
  grid.hidden = state.view !== "cards";
  byId("lines").hidden = state.view !== "table";
  draw();
};
const update = () => {
  turn += 1;
  const mine = turn, waits = lacking();
  if (!waits) { choose(); return; }
  say("Loading what all rows are sorted and filtered by");
  waits.then(() => { if (mine === turn) choose(); }, failedToLoad);
};

// watched afresh after every batch: one that does not fill the screen would otherwise be the last
const end = new IntersectionObserver((entries) => { if (entries.at(-1).isIntersecting && !more.hidden) draw(); }, { rootMargin: "1200px" });
const put = (positions) => {
  const rows = positions.map(rowAt);
  if (state.view === "table") table.tBodies[0].append(...rows.map(line)); else grid.append(...rows.map(build));
  drawn += positions.length;
  more.hidden = drawn >= chosen.length;
  more.textContent = `Show more (${count(chosen.length - drawn)} left)`;
  end.unobserve(more);
  end.observe(more);
};
const draw = () => {
  if (drawing) return;
  const positions = chosen.slice(drawn, drawn + BATCH[state.view]), mine = turn, waits = need(positions);
  if (!waits) { put(positions); return; }
  drawing = true;
  waits.then(() => { drawing = false; if (mine === turn) put(positions); else draw(); }, (error) => { drawing = false; failedToLoad(error); });
};
const clear = () => {
  for (const video of grid.querySelectorAll("video")) {
    seen.unobserve(video);
    near.unobserve(video);
    halt(video);
    video.removeAttribute("src");
  }
  inView.clear();
  followers.clear();
  grid.replaceChildren();
  table.tBodies[0].replaceChildren();
  drawn = 0;
  more.hidden = true;
  hideTip();
};

// --- the address ---------------------------------------------------------------------------------------------------
let row = null; // the one that is enlarged
const readHash = () => {
  const given = new URLSearchParams(location.hash.slice(1));
  const one = (name, values) => values.includes(given.get(name)) ? given.get(name) : USUAL[name];
  Object.assign(state, { status: one("status", ["ok", "failed"]), sort: one("sort", SORTS), dir: one("dir", ["desc"]),
    view: one("view", ["table"]), all: one("all", ["1"]), q: given.get("q") ?? "" });
  for (const name of ["status", "q", "sort", "view"]) bar.elements[name].value = state[name];
  showDirection();
  return /^\d{1,15}$/.test(given.get("row") ?? "") ? Number(given.get("row")) : null;
};
const writeHash = () => {
  const out = new URLSearchParams();
  for (const [name, usual] of Object.entries(USUAL)) if (state[name] !== usual) out.set(name, state[name]);
  if (row !== null) out.set("row", String(row));
  history.replaceState(null, "", `#${out}`);
};
const setRow = (number) => { row = number; writeHash(); };
const openAt = async (position) => {
  await need([position]);
  openViewer([rowAt(position)]);
};
const openRow = async (number) => {
  try {
    await needKeys();
    const position = keys.row.indexOf(number);
    if (position >= 0) await openAt(position); else say(`There is no row ${number} on this page.`);
  } catch (error) { failedToLoad(error); }
};
// the next or the one before of those that are shown
const walkBy = (by) => {
  const at = viewed.length === 1 ? chosen.indexOf(viewed[0].card.position) : -1, next = chosen[at + by];
  if (at >= 0 && next !== undefined) openAt(next).catch(failedToLoad);
};
byId("before").addEventListener("click", () => walkBy(-1));
byId("after").addEventListener("click", () => walkBy(1));

const showDirection = () => {
  const up = state.dir === "asc", button = byId("direction");
  button.textContent = up ? "↑" : "↓";
  button.title = up ? "Ascending" : "Descending";
  button.setAttribute("aria-label", up ? "Ascending; change to descending" : "Descending; change to ascending");
};
const changed = () => { writeHash(); update(); };

let typing = 0;
bar.addEventListener("submit", (event) => event.preventDefault());
bar.addEventListener("change", (event) => {
  if (["status", "sort", "view"].includes(event.target.name)) { state[event.target.name] = event.target.value; changed(); }
});
bar.elements.q.addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => { state.q = event.target.value; changed(); }, 120);
});
byId("direction").addEventListener("click", () => { state.dir = state.dir === "asc" ? "desc" : "asc"; showDirection(); changed(); });
byId("play").addEventListener("click", () => setPlaying(!playing));
byId("csv").addEventListener("click", () => { saveCsv(isFirst() ? Array.from({ length: total }, (_, at) => at) : [...chosen], say).then(() => say(""), failedToLoad); });
byId("all").addEventListener("click", () => { state.all = "1"; changed(); });
more.addEventListener("click", () => {
  const at = drawn;
  draw();
  (state.view === "table" ? table.tBodies[0] : grid).children[at]?.querySelector("video, button, a, summary")?.focus();
});
addEventListener("hashchange", () => {
  if (location.hash === "#cards") return;
  const before = JSON.stringify(state), wanted = new URLSearchParams(location.hash.slice(1));
  if (wanted.size === 1 && wanted.has("row")) { // a link to a row keeps the filter
    const number = Number(wanted.get("row"));
    writeHash();
    openRow(number);
    return;
  }
  const number = readHash();
  if (JSON.stringify(state) !== before) update();
  if (number !== null && number !== row) openRow(number);
});
addEventListener("scroll", hideTip, { passive: true });

app.hidden = false;
const legend = byId("legend");
if (legend) legend.open = matchMedia("(min-width: 760px)").matches;
setPlaying(playing);
const asksFor = readHash();
update();
if (asksFor !== null) openRow(asksFor);
requestAnimationFrame(follow);
