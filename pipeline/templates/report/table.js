// --- the same rows as a table, and as a file -------------------------------------------------------------------------
const table = byId("table");
const COLUMNS = [
  ["Row", (c) => h("a", { href: `#row=${c.row}` }, String(c.row))], ["Id", (c) => c.id === null ? "" : shown(c.id)], ["Status", (c) => c.status],
  ["Prompt", (c) => h("span", { class: "cell", dir: "auto", title: shown(c.prompts.join("\n→ ")) }, shown(c.prompts.join(" → ")))],
  ["Seed", (c) => c.seed ?? ""], ["Frames", (c) => c.num_frames === null ? "" : count(c.num_frames)], ["Length", (c) => c.status === "ok" ? seconds(c.video_s) : ""],
  ...(data.scored ? [["Score", (c) => c.score === null ? "" : c.score.toFixed(4)]] : []), ["Consistency", (c) => c.mean_consistency === null ? "" : c.mean_consistency.toFixed(4)], ...(data.gated ? [["Gate", (c) => !c.gate ? "" : c.gate.good ? `try ${c.gate.kept + 1}` : "not good enough"]] : []), ["Searches", (c) => c.searched_at ? String(c.searched_at.length) : ""],
  ["Corrections", (c) => c.corrected_at ? String(c.corrected_at.length) : ""], ["Calls", (c) => c.network_calls === null ? "" : count(c.network_calls)],
  ["Time to make", (c) => timeOf(c) ? seconds(timeOf(c)) : ""], ["Size", (c) => c.bytes ? bytes(c.bytes) : ""],
  ["Video, or reason", (c) => c.status === "failed" ? `${shown(c.error_type || "Failed")}: ${shown(c.error)}`
    : c.href ? h("a", { href: c.href }, shown(c.uri.split("/").pop())) : shown(c.uri)],
];
table.tHead.rows[0].append(...COLUMNS.map(([name]) => h("th", { scope: "col" }, name)));
const line = (card) => h("tr", { class: card.status, "data-row": card.row }, COLUMNS.map(([, value]) => h("td", {}, value(card))));

// a cell that begins like a formula would be one in a spreadsheet (the signs' wide forms, too)
const harmless = (text) => /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text) ? `'${text}` : text;
const cell = (value) => {
  if (value === null || value === undefined) return "";
  const text = typeof value === "number" ? String(value) : harmless(String(value));
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
const CSV = {
  row: (c) => c.row, id: (c) => c.id, status: (c) => c.status, prompt: (c) => c.prompts.join("\n"), negative_prompt: (c) => c.negative_prompt,
  seed: (c) => c.seed, profile: (c) => c.profile, num_frames: (c) => c.num_frames, fps: (c) => c.fps, height: (c) => c.height, width: (c) => c.width,
  duration_s: (c) => c.status === "ok" ? c.video_s : null, mean_consistency: (c) => c.mean_consistency,
  score: (c) => c.score, scores: (c) => Object.keys(c.scores).length ? JSON.stringify(c.scores) : null,
  num_searches: (c) => c.searched_at?.length, num_corrections: (c) => c.corrected_at?.length, network_calls: (c) => c.network_calls,
  time_s: (c) => timeOf(c) || null, bytes: (c) => c.bytes, sha256: (c) => c.sha256, key: (c) => c.key, uri: (c) => c.uri,
  quality: (c) => c.gate && (c.gate.good ? "good" : "marked"), quality_why: (c) => c.gate?.why, error_type: (c) => c.error_type, error: (c) => c.error, metadata: (c) => c.metadata,
};
const csvOf = (card) => `${Object.values(CSV).map((value) => cell(value(card))).join(",")}\r\n`;
const saveCsv = async (positions, say) => {
  const parts = [`${Object.keys(CSV).join(",")}\r\n`], EACH = 1000;
  for (let from = 0; from < positions.length; from += EACH) {
    const some = positions.slice(from, from + EACH);
    // sorted by anything but the row they lie in many pieces, of which few are held: a piece at a time
    const byPiece = pieces ? [...some].sort((a, b) => a - b) : some, texts = new Map();
    for (let at = 0; at < byPiece.length; at += 100) {
      const few = byPiece.slice(at, at + 100);
      await need(few);
      for (const position of few) texts.set(position, csvOf(rowAt(position)));
    }
    parts.push(...some.map((position) => texts.get(position)));
    say(`Writing the CSV: ${Math.round((100 * (from + some.length)) / positions.length)} %`);
  }
  const address = URL.createObjectURL(new Blob(parts, { type: "text/csv" }));
  const link = h("a", { href: address, download: "rows.csv" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
};
