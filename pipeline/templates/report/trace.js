// --- the consistency trace -----------------------------------------------------------------------------------------
const tip = byId("tip");
const W = 340, H = 120, LEFT = 33, RIGHT = 10, TOP = 19, BOTTOM = 27;
const stepFor = (span, want) => {
  const raw = span / want, power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((m) => m * power).find((v) => v >= raw * 0.999);
};
const ticks = (low, high, want, least = 0) => {
  const step = Math.max(stepFor(high - low, want), least), out = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) out.push(at * step);
  if (out.length < 2 && want < 12 && step > least) return ticks(low, high, want + 2, least); // one number is no scale
  return { out, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
};
const path = (points) => {
  let pen = "M", d = "";
  for (const { x, y } of points) {
    if (y === null) { pen = "M"; continue; }
    d += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  }
  return d;
};
const series = (card) => {
  const searched = new Set(card.searched_at), corrected = new Set(card.corrected_at);
  const judged = card.consistency.map((score, at) => ({
    score, latent: card.consistency_latents?.[at] ?? at, searched: searched.has(at), corrected: corrected.has(at),
    name: `evaluation ${at + 1} of ${card.consistency.length}`,
  }));
  const final = card.final_consistency.map((score, at) => ({
    score, latent: card.final_latents[at], name: `finished latents, chunk ${at + 1} of ${card.final_consistency.length}`,
  }));
  return { judged, final };
};
const describe = (point) => {
  const score = point.score === null ? "not finite" : point.score.toFixed(4);
  const mark = point.corrected ? "\nsearched and corrected" : point.searched ? "\nsearched, nothing better found" : "";
  const past = point.past ? "\nbeyond the video's end: still in the queue, never shown" : "";
  return `${point.name}\nlatent ${Math.round(point.latent)} · consistency ${score}${mark}${past}`;
};
const place = (card, all) => {
  const [least, most] = data.scale ?? [0, 1]; // of all rows: cards can be compared
  const pad = Math.max((most - least) * 0.06, (0.02 - (most - least)) / 2, 0); // noise of a flat line is not blown up
  const low = least - pad, high = most + pad;
  const end = Math.max(card.num_latents ?? 1, ...all.map((p) => p.latent), 1);
  const x = (latent) => LEFT + (latent / end) * (W - LEFT - RIGHT);
  const y = (score) => TOP + ((high - score) / (high - low)) * (H - TOP - BOTTOM);
  for (const p of all) Object.assign(p, { x: x(p.latent), y: p.score === null ? null : y(p.score), past: p.latent >= (card.num_latents ?? Infinity) });
  return { x, y, low, high, end };
};
const axes = (card, scale) => {
  const nodes = [], floor = H - BOTTOM, last = card.num_latents ?? scale.end;
  if (last < scale.end) {
    nodes.push(s("rect", { class: "beyond", x: scale.x(last), y: TOP, width: scale.x(scale.end) - scale.x(last), height: floor - TOP }));
  }
  const v = ticks(scale.low, scale.high, 4), w = ticks(0, scale.end, 6, 1);
  for (const at of v.out) {
    nodes.push(s("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: scale.y(at), y2: scale.y(at) }));
    nodes.push(s("text", { x: LEFT - 5, y: scale.y(at) + 3.5, "text-anchor": "end" }, at.toFixed(v.digits)));
  }
  nodes.push(s("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: floor, y2: floor }));
  for (const at of w.out) nodes.push(s("text", { x: scale.x(at), y: floor + 12, "text-anchor": "middle" }, at.toFixed(0)));
  nodes.push(s("text", { x: W - RIGHT, y: floor + 24, "text-anchor": "end" }, "latents"));
  nodes.push(s("text", { x: 4, y: 9 }, "consistency"));
  for (const [first] of card.spans.slice(1)) {
    nodes.push(s("line", { class: "turn", x1: scale.x(first), x2: scale.x(first), y1: TOP, y2: floor }));
  }
  return nodes;
};
const marks = ({ judged, final }) => {
  const floor = H - BOTTOM, nodes = [s("path", { class: "line final", d: path(final) }), s("path", { class: "line", d: path(judged) })];
  const dots = (points, kind) => points.length <= 48
    ? points.filter((p) => p.y !== null).map((p) => s("circle", { class: `dot ${kind}`, cx: p.x, cy: p.y, r: 1.7 })) : [];
  nodes.push(...dots(final, "final"), ...dots(judged, ""));
  for (const p of judged) {
    const cy = p.y ?? floor;
    if (p.searched) nodes.push(s("circle", { class: "search", "data-mark": "search", cx: p.x, cy, r: 5.2 }));
    if (p.corrected) {
      nodes.push(s("path", { class: "correction", "data-mark": "correction", d: `M${p.x} ${cy - 4.2} L${p.x + 4.2} ${cy} L${p.x} ${cy + 4.2} L${p.x - 4.2} ${cy} Z` }));
    }
  }
  return nodes;
};
const showTip = (text, x, y) => {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(x - box.width / 2, innerWidth - box.width - 6))}px`;
  tip.style.top = `${y - box.height - 12 > 4 ? y - box.height - 12 : y + 16}px`;
};
const hideTip = () => { tip.hidden = true; };

const trace = (card, video) => {
  const { judged, final } = series(card), all = [...judged, ...final];
  if (!all.length) return null;
  const scale = place(card, all), order = judged.length ? judged : final;
  const cursor = s("line", { class: "cursor", y1: TOP, y2: H - BOTTOM, x1: -9, x2: -9, visibility: "hidden" });
  const pick = s("circle", { class: "pick", r: 7.5, visibility: "hidden" });
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, "aria-hidden": "true" }, axes(card, scale), marks({ judged, final }), cursor, pick);
  const worst = Math.min(...all.filter((p) => p.score !== null).map((p) => p.score));
  const summary = `Consistency trace: ${judged.length} evaluations, ${judged.filter((p) => p.searched).length} searches, ` +
    `${judged.filter((p) => p.corrected).length} corrections, lowest ${Number.isFinite(worst) ? worst.toFixed(3) : "unknown"}. Arrow keys walk along it.`;
  const node = h("div", { class: "trace", tabindex: 0, role: "slider", "aria-label": summary, "aria-valuemin": 0,
    "aria-valuemax": order.length - 1, "aria-valuenow": 0, "aria-valuetext": describe(order[0]) }, svg);
  let current = 0;

  const show = (point, x, y) => {
    pick.setAttribute("visibility", "visible");
    pick.setAttribute("cx", point.x);
    pick.setAttribute("cy", point.y ?? H - BOTTOM);
    showTip(describe(point), x, y);
  };
  const hide = () => { pick.setAttribute("visibility", "hidden"); hideTip(); };
  const within = (event) => {
    const box = svg.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * W, y: ((event.clientY - box.top) / box.height) * H };
  };
  const closest = ({ x, y }) => all.reduce((best, p) => {
    const far = (p.x - x) ** 2 + (((p.y ?? H - BOTTOM) - y) * 0.35) ** 2;
    return far < best.far ? { p, far } : best;
  }, { p: all[0], far: Infinity }).p;
  const toLatent = (x) => ((x - LEFT) / (W - LEFT - RIGHT)) * scale.end;

  node.addEventListener("pointermove", (event) => {
    show(closest(within(event)), event.clientX, event.clientY);
    if (event.buttons & 1) seek(video, card, toLatent(within(event).x));
  });
  node.addEventListener("pointerleave", hide);
  node.addEventListener("blur", hide);
  node.addEventListener("pointerdown", (event) => { if (event.button === 0) seek(video, card, toLatent(within(event).x)); });
  node.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: current - 1, ArrowDown: current - 1, ArrowRight: current + 1, ArrowUp: current + 1, Home: 0, End: order.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    current = Math.max(0, Math.min(to, order.length - 1));
    const point = order[current], box = svg.getBoundingClientRect();
    node.setAttribute("aria-valuenow", current);
    node.setAttribute("aria-valuetext", describe(point));
    show(point, box.left + (point.x / W) * box.width, box.top + ((point.y ?? 0) / H) * box.height);
    seek(video, card, point.latent);
  });
  const move = (time) => {
    const x = scale.x(Math.min(latentAt(card, time), scale.end)).toFixed(1);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
  };
  return { node, move };
};
