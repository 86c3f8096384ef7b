"use strict";
// The cards of the page, drawn from the embedded JSON. Prompts only ever become text nodes, never markup.
(() => {
  const { cards, stages } = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const app = byId("app"), grid = byId("cards"), bar = byId("bar"), tip = byId("tip"), more = byId("more"), none = byId("none");
  const BATCH = 24;

  // --- words and numbers ---------------------------------------------------------------------------------------------
  const count = (n) => n.toLocaleString("en-US");
  const bytes = (n) => {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let at = 0;
    while (n >= 1000 && at < 4) { n /= 1000; at += 1; }
    return `${n >= 100 || at === 0 ? n.toFixed(0) : n.toPrecision(3)} ${units[at]}`;
  };
  const seconds = (s) => {
    if (s < 0.01) return "0 s";
    if (s < 60) return `${s < 10 ? s.toFixed(2) : s.toFixed(1)} s`;
    const h = Math.floor(s / 3600), m = Math.floor((s % 3600) / 60);
    return h ? `${h} h ${m} min` : `${m} min ${Math.floor(s % 60)} s`;
  };
  // control characters are shown as their pictures, so that what was asked for can be seen
  const shown = (text) => String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g,
    (c) => c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : c === "\u007f" ? "\u2421" : "\ufffd");

  const fill = (node, props, children) => {
    for (const [name, value] of Object.entries(props)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") Object.assign(node.style, value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  };
  const h = (tag, props = {}, ...children) => fill(document.createElement(tag), props, children);
  const s = (tag, props = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);

  // --- latents and time ----------------------------------------------------------------------------------------------
  // Latent 0 makes one frame, each later one `per` frames: position x on the axis of latents <-> time in the video.
  const perLatent = (card) => card.num_latents > 1 ? Math.max((card.num_frames - 1) / (card.num_latents - 1), 1e-9) : 1;
  const latentAt = (card, time) => {
    const frame = time * (card.fps || 1);
    return frame < 1 ? frame : 1 + (frame - 1) / perLatent(card);
  };
  const timeAt = (card, latent) => (latent < 1 ? latent : 1 + (latent - 1) * perLatent(card)) / (card.fps || 1);

  // --- playing -------------------------------------------------------------------------------------------------------
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const inView = new Set();      // videos that are seen
  const stopped = new WeakSet(); // videos that the reader has paused
  const ours = new WeakSet();    // videos whose next pause is this script's doing
  const followers = new Map();   // video -> what follows its time (the plot's cursor, the prompt in turn)

  const start = (video) => { if (video.paused && !stopped.has(video)) video.play().catch(() => {}); };
  const halt = (video) => { if (!video.paused) { ours.add(video); video.pause(); } };
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) { inView.add(target); if (playing) start(target); } else { inView.delete(target); halt(target); }
    }
  }, { threshold: 0.2 });
  // a browser holds few decoders: a video has a source only near the screen
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !target.hasAttribute("src")) {
        target.src = target.dataset.src;
        if (playing && inView.has(target)) start(target);
      } else if (!isIntersecting && target.hasAttribute("src")) {
        halt(target);
        target.removeAttribute("src");
        target.load();
      }
    }
  }, { rootMargin: "900px" });
  const follow = () => {
    for (const video of inView) if (video.readyState) followers.get(video)?.(video.currentTime);
    requestAnimationFrame(follow);
  };
  const setPlaying = (on) => {
    playing = on;
    const button = byId("play");
    button.textContent = on ? "Pause all" : "Play all";
    button.setAttribute("aria-pressed", String(on));
    for (const video of grid.querySelectorAll("video")) {
      stopped.delete(video);
      if (!on) halt(video); else if (inView.has(video)) start(video);
    }
  };

  const screen = (card) => {
    if (!card.playable) {
      const name = card.href ? h("a", { href: card.href, rel: "noreferrer" }, shown(card.uri)) : shown(card.uri);
      return { node: h("div", { class: "screen apart" }, h("div", { class: "note" }, name, h("br"), card.why)), video: null };
    }
    const label = `Video ${card.id ?? card.row}: ${(card.prompts[0] ?? "").slice(0, 200)}`;
    const video = h("video", { controls: true, loop: true, playsinline: true, preload: "metadata", "aria-label": shown(label) });
    video.muted = true;
    video.defaultMuted = true;
    video.dataset.src = card.href;
    const node = h("div", { class: "screen" }, video);
    video.addEventListener("pause", () => { if (!ours.delete(video) && !video.ended) stopped.add(video); });
    video.addEventListener("play", () => stopped.delete(video));
    video.addEventListener("error", () => {
      if (!video.hasAttribute("src")) return;
      near.unobserve(video);
      seen.unobserve(video);
      inView.delete(video);
      node.classList.add("apart");
      node.replaceChildren(h("div", { class: "note", role: "alert" }, "The video cannot be played: is it still beside this page? ",
        h("a", { href: card.href }, shown(card.uri))));
    });
    near.observe(video);
    seen.observe(video);
    return { node, video };
  };
  const seek = (video, card, latent) => {
    if (!video || !video.readyState) return;
    video.currentTime = Math.min(Math.max(timeAt(card, latent) + 0.001, 0), (video.duration || 1) - 0.01);
    followers.get(video)?.(video.currentTime);
  };

  // --- the consistency trace -----------------------------------------------------------------------------------------
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
    const scores = all.map((p) => p.score).filter((v) => v !== null);
    let low = scores.length ? Math.min(...scores) : 0, high = scores.length ? Math.max(...scores) : 1;
    const pad = Math.max((high - low) * 0.1, (0.02 - (high - low)) / 2, 0); // noise of a flat line is not blown up
    low -= pad;
    high += pad;
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

  // --- a card --------------------------------------------------------------------------------------------------------
  const promptText = (text) => {
    if (!text.trim()) return [h("p", { class: "prompt blank" }, text ? "a prompt of white space only" : "no prompt")];
    const node = h("p", { class: "prompt", dir: "auto" }, shown(text));
    if (text.length <= 220 && text.split("\n").length <= 4) return [node];
    node.classList.add("long");
    const label = `Show all ${count(text.length)} characters`;
    const open = h("button", { type: "button", class: "open", "aria-expanded": "false", onclick: () => {
      const long = node.classList.toggle("long");
      open.textContent = long ? label : "Show less";
      open.setAttribute("aria-expanded", String(!long));
    } }, label);
    return [node, open];
  };
  const prompts = (card, video) => {
    if (card.prompts.length < 2 || !card.spans.length) return { nodes: card.prompts.length ? card.prompts.flatMap(promptText) : promptText(""), move: null };
    const items = card.prompts.map((text, at) => {
      const [first, end, firstFrame, endFrame] = card.spans[at];
      const where = end > first ? `latents ${first}–${end - 1}` : "beyond the video";
      const frames = end > first ? `Frames ${firstFrame}–${endFrame - 1}; go there` : "This prompt is not reached";
      return h("li", {}, h("button", { type: "button", title: text.length > 150 ? shown(text) : frames, onclick: () => seek(video, card, first) },
        h("span", { class: "prompt", dir: "auto" }, shown(text)), h("small", {}, where, h("br"), `frames ${firstFrame}–${Math.max(endFrame - 1, firstFrame)}`)));
    });
    const move = (time) => {
      const latent = latentAt(card, time);
      card.spans.forEach(([first, end], at) => items[at].firstChild.classList.toggle("now", latent >= first && latent < end));
    };
    return { nodes: [h("ol", { class: "turns" }, items)], move };
  };
  const timeOf = (card) => card.timings.reduce((sum, value) => sum + value, 0);
  const times = (card) => {
    const total = timeOf(card);
    if (!total) return null;
    const words = stages.map((stage, at) => `${stage.replace("_", " ")} ${seconds(card.timings[at])}`);
    const text = words.filter((_, at) => card.timings[at] > 0).join(", ");
    const stack = h("div", { class: "stack", role: "img", "aria-label": `Time to make: ${text}` },
      stages.map((_, at) => card.timings[at] > 0 && h("i", { class: `s${at}`, style: { flexGrow: String(card.timings[at] / total) } })));
    const node = h("div", { class: "times" }, stack, h("span", {}, seconds(total)));
    node.addEventListener("pointermove", (event) => showTip(words.join("\n"), event.clientX, event.clientY));
    node.addEventListener("pointerleave", hideTip);
    return node;
  };
  const figures = (card) => {
    const size = card.width && card.height ? `${card.width}×${card.height}` : null;
    const items = [
      card.num_frames !== null && [h("b", {}, count(card.num_frames)), " frames"], card.fps && [h("b", {}, String(card.fps)), " fps"],
      size && [h("b", {}, size)], card.video_s > 0 && card.status === "ok" && [h("b", {}, seconds(card.video_s))],
      card.network_calls > 0 && [h("b", {}, count(card.network_calls)), " calls"],
      card.seed !== null && ["seed ", h("b", {}, card.seed)], card.profile && [h("b", {}, shown(card.profile))],
    ];
    return h("ul", { class: "figures" }, items.filter(Boolean).map((item) => h("li", {}, item)));
  };
  const rest = (card) => {
    const code = (text) => text && h("code", {}, shown(text));
    const lines = [
      ["Key", code(card.key)], ["File", card.href && card.playable ? h("a", { href: card.href }, shown(card.uri)) : card.uri && shown(card.uri)],
      ["Size", card.bytes && bytes(card.bytes)], ["SHA-256", code(card.sha256)], ["Attempt", card.attempt !== null && String(card.attempt)],
      ["Latents", card.num_latents !== null && count(card.num_latents)],
      ["Times", timeOf(card) > 0 && stages.map((stage, at) => `${stage.replace("_", " ")} ${seconds(card.timings[at])}`).join(" · ")],
      ["Waited", card.queue_wait_s > 0 && seconds(card.queue_wait_s)], ["Device", card.device && shown([card.device, card.node].filter(Boolean).join(" on "))],
      ["Peak memory", card.peak_memory_bytes && bytes(card.peak_memory_bytes)],
      ["Consistency", card.mean_consistency !== null && `${card.mean_consistency.toFixed(4)} in the mean`], ["Made", card.created_at],
      ["Carried along", card.metadata && h("pre", {}, shown(card.metadata))],
    ];
    return h("details", { class: "rest" }, h("summary", {}, "Details"),
      h("dl", {}, lines.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
  };
  const remedy = (text) => text.split("`").map((part, at) => at % 2 ? h("code", {}, part) : part);
  const failure = (card) => h("div", { class: "failure" }, h("strong", {}, shown(card.error_type || "Failed")),
    h("p", { dir: "auto" }, shown(card.error)), h("p", { class: "remedy" }, h("b", {}, "Remedy: "), remedy(shown(card.remedy))));

  const build = (card) => {
    const failed = card.status === "failed";
    const { node: top, video } = failed ? { node: failure(card), video: null } : screen(card);
    const turns = prompts(card, video), plot = trace(card, video);
    if (video) followers.set(video, (time) => { plot?.move(time); turns.move?.(time); });
    const title = shown(card.id ?? `row ${card.row}`);
    return h("article", { class: `card ${card.status}`, "data-row": card.row, "aria-label": title }, top,
      h("div", { class: "body" },
        h("div", { class: "head" }, h("h2", { title }, title), failed && h("span", { class: "badge bad" }, "failed"),
          card.attempt > 1 && h("span", { class: "badge" }, `attempt ${card.attempt}`), h("span", { class: "at" }, `row ${card.row}`)),
        turns.nodes, card.negative_prompt && h("p", { class: "negative", dir: "auto" }, "Not: ", shown(card.negative_prompt)),
        plot?.node, times(card), figures(card), rest(card)));
  };

  // --- which cards, in which order -----------------------------------------------------------------------------------
  const KEYS = {
    row: (c) => c.row, consistency: (c) => c.mean_consistency, corrections: (c) => c.corrected_at?.length ?? null, searches: (c) => c.searched_at?.length ?? null,
    duration: (c) => c.status === "ok" ? c.video_s : null, time: (c) => timeOf(c) || null, calls: (c) => c.network_calls, bytes: (c) => c.bytes,
  };
  const hay = new Map();
  const haystack = (card) => {
    if (!hay.has(card)) hay.set(card, [card.id, card.key, ...card.prompts, card.error_type, card.error].filter(Boolean).join("\n").toLowerCase());
    return hay.get(card);
  };
  const state = { status: "all", q: "", sort: "row", dir: "asc" };
  let chosen = [], drawn = 0;

  const matching = () => {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    return cards.filter((card) => words.every((word) => haystack(card).includes(word)));
  };
  // watched afresh after every batch: one that does not fill the screen would otherwise be the last
  const end = new IntersectionObserver((entries) => { if (entries.at(-1).isIntersecting && !more.hidden) draw(); }, { rootMargin: "1200px" });
  const draw = () => {
    grid.append(...chosen.slice(drawn, drawn + BATCH).map(build));
    drawn = Math.min(drawn + BATCH, chosen.length);
    more.hidden = drawn >= chosen.length;
    more.textContent = `Show more (${count(chosen.length - drawn)} left)`;
    end.unobserve(more);
    end.observe(more);
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
    hideTip();
  };
  const update = () => {
    const found = matching(), sign = state.dir === "asc" ? 1 : -1, key = KEYS[state.sort];
    chosen = found.filter((card) => state.status === "all" || card.status === state.status);
    const known = (card) => key(card) !== null && key(card) !== undefined;
    chosen.sort((a, b) => known(a) !== known(b) ? (known(a) ? -1 : 1) : known(a) && key(a) !== key(b) ? sign * (key(a) - key(b)) : a.row - b.row);
    for (const label of bar.querySelectorAll("[data-count]")) {
      label.textContent = count(found.filter((card) => label.dataset.count === "all" || card.status === label.dataset.count).length);
    }
    byId("shown").textContent = chosen.length === cards.length ? `${count(cards.length)} rows` : `${count(chosen.length)} of ${count(cards.length)} rows`;
    none.hidden = chosen.length > 0;
    none.textContent = cards.length ? "No row matches the filter." : "This run has no rows yet.";
    clear();
    drawn = 0;
    draw();
  };

  const readHash = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    state.status = ["all", "ok", "failed"].includes(given.get("status")) ? given.get("status") : "all";
    state.sort = Object.hasOwn(KEYS, given.get("sort") ?? "") ? given.get("sort") : "row";
    state.dir = given.get("dir") === "desc" ? "desc" : "asc";
    state.q = given.get("q") ?? "";
    bar.elements.status.value = state.status;
    bar.elements.q.value = state.q;
    bar.elements.sort.value = state.sort;
    showDirection();
  };
  const writeHash = () => {
    const out = new URLSearchParams();
    for (const [name, usual] of Object.entries({ status: "all", q: "", sort: "row", dir: "asc" })) if (state[name] !== usual) out.set(name, state[name]);
    history.replaceState(null, "", `#${out}`);
  };
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
    if (event.target.name === "status" || event.target.name === "sort") { state[event.target.name] = event.target.value; changed(); }
  });
  bar.elements.q.addEventListener("input", (event) => {
    clearTimeout(typing);
    typing = setTimeout(() => { state.q = event.target.value; changed(); }, 120);
  });
  byId("direction").addEventListener("click", () => { state.dir = state.dir === "asc" ? "desc" : "asc"; showDirection(); changed(); });
  byId("play").addEventListener("click", () => setPlaying(!playing));
  more.addEventListener("click", () => {
    const first = drawn;
    draw();
    grid.children[first]?.querySelector("video, button, summary")?.focus();
  });
  addEventListener("hashchange", () => { if (location.hash !== "#cards") { readHash(); update(); } });
  addEventListener("scroll", hideTip, { passive: true });

  app.hidden = false;
  if (!cards.some((card) => card.consistency.length || card.final_consistency.length)) {
    for (const item of byId("legend").querySelectorAll("li:has(svg), .trace-only")) item.hidden = true;
  }
  byId("legend").hidden = !cards.some((card) => card.status === "ok");
  setPlaying(playing);
  readHash();
  update();
  requestAnimationFrame(follow);
})();
