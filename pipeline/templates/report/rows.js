// --- rows ----------------------------------------------------------------------------------------------------------
// A row is named by its position in the page. The page holds all rows, or some and the names of pieces that hold all.
const data = JSON.parse(document.getElementById("data").textContent);
const { stages, total, pieces, strips } = data;
const PIECES_HELD = 80;
const held = new Map();   // position -> row, of those that the page itself holds
const loaded = new Map(); // number of a piece -> its rows, the most recently used last
data.cards.forEach((card, at) => { card.position = data.positions[at]; held.set(card.position, card); });

// a page opened from disk may not fetch files, but may run scripts: a piece is one, and calls this
const awaited = new Map();
self.migaReport = (name, value) => { awaited.get(name)?.(value); };
const asked = new Map();
const load = (name) => {
  if (!asked.has(name)) {
    asked.set(name, new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const end = () => { awaited.delete(name); script.remove(); };
      awaited.set(name, (value) => { end(); resolve(value); });
      script.onerror = () => { end(); asked.delete(name); reject(new Error(`${pieces.folder}/${name}.js`)); };
      script.src = `${pieces.folder}/${name}.js`;
      document.head.append(script);
    }));
  }
  return asked.get(name);
};
const numbered = (kind, number) => `${kind}-${String(number).padStart(5, "0")}`;

const pieceOf = (position) => Math.floor(position / pieces.rows);
const rowAt = (position) => held.get(position) ?? loaded.get(pieceOf(position))[position % pieces.rows];
// null if all rows are there already; otherwise a promise
const need = (positions) => {
  if (!pieces) return null;
  const numbers = new Set(positions.filter((position) => !held.has(position)).map(pieceOf));
  for (const number of numbers) {
    if (!loaded.has(number)) continue;
    const rows = loaded.get(number);
    loaded.delete(number);
    loaded.set(number, rows);
  }
  const lacking = [...numbers].filter((number) => !loaded.has(number));
  if (!lacking.length) return null;
  return Promise.all(lacking.map(async (number) => {
    const name = numbered("rows", number), rows = await load(name);
    rows.forEach((card, at) => { card.position = number * pieces.rows + at; });
    asked.delete(name);
    loaded.set(number, rows);
  })).then(() => {
    for (const number of loaded.keys()) if (loaded.size > PIECES_HELD && !numbers.has(number)) loaded.delete(number);
  });
};

// what rows are sorted and filtered by: a column each
const timeOf = (card) => card.timings.reduce((sum, value) => sum + value, 0);
let keys = null;
const makeKeys = () => {
  const cards = data.cards, column = (value) => cards.map((card) => value(card) ?? null);
  return {
    row: column((c) => c.row), ok: column((c) => c.status === "ok" ? 1 : 0), consistency: column((c) => c.mean_consistency),
    score: column((c) => c.score), gate: column((c) => c.gate && (c.gate.good ? 1 : 0)), corrections: column((c) => c.corrected_at?.length), searches: column((c) => c.searched_at?.length),
    duration: column((c) => c.status === "ok" ? c.video_s : null), time: column((c) => timeOf(c) || null),
    calls: column((c) => c.network_calls), bytes: column((c) => c.bytes),
  };
};
const needKeys = () => {
  if (keys) return null;
  if (!pieces) { keys = makeKeys(); return null; }
  return load("index").then((columns) => { keys = columns; });
};

// what is searched in
let hay = null;
const needHay = (say) => {
  if (hay) return null;
  if (!pieces) {
    hay = data.cards.map((c) => [c.id, c.key, ...c.prompts, c.error_type, c.error].filter(Boolean).join("\n").toLowerCase());
    return null;
  }
  return (async () => {
    const all = [], num = Math.ceil(total / pieces.words);
    for (let number = 0; number < num; number += 1) {
      say(`Loading the prompts of all rows: ${Math.round((100 * number) / num)} %`);
      for (const text of await load(numbered("words", number))) all.push(text.toLowerCase());
      asked.delete(numbered("words", number));
    }
    hay = all;
  })();
};
