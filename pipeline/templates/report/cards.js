// --- a card --------------------------------------------------------------------------------------------------------
const promptText = (tag, text) => {
  if (!text.trim()) return [h(tag, { class: "prompt blank" }, text ? "a prompt of white space only" : "no prompt")];
  const node = h(tag, { class: "prompt", dir: "auto" }, shown(text));
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
// the headline of a card is its prompt, or that there are several, which follow
const prompts = (card, video) => {
  if (card.prompts.length < 2) return { nodes: promptText("h2", card.prompts[0] ?? ""), move: null };
  const title = h("h2", { class: "several" }, `${card.prompts.length} prompts in turn`);
  if (!card.spans.length) return { nodes: [title, ...card.prompts.flatMap((text) => promptText("p", text))], move: null };
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
  return { nodes: [title, h("ol", { class: "turns" }, items)], move };
};
const times = (card) => {
  const whole = timeOf(card);
  if (!whole) return null;
  const words = stages.map((stage, at) => `${stage.replace("_", " ")} ${seconds(card.timings[at])}`);
  const text = words.filter((_, at) => card.timings[at] > 0).join(", ");
  const stack = h("div", { class: "stack", role: "img", "aria-label": `Time to make: ${text}` },
    stages.map((_, at) => card.timings[at] > 0 && h("i", { class: `s${at}`, style: { flexGrow: String(card.timings[at] / whole) } })));
  const node = h("div", { class: "times" }, stack, h("span", {}, seconds(whole)));
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
    card.score !== null && [`${data.scored.split(".").pop().replaceAll("_", " ")} `, h("b", {}, card.score.toFixed(3))],
    card.seed !== null && ["seed ", h("b", {}, card.seed)], card.profile && [h("b", {}, shown(card.profile))],
  ];
  return h("ul", { class: "figures" }, items.filter(Boolean).map((item) => h("li", {}, item)));
};
const scoresOf = (card) => Object.entries(card.scores).map(([name, value]) => `${name.replaceAll("_", " ")} ${value.toFixed(4)}`).join(" · ");
// the quality gate: which try was kept and why, and what came of each
const gateMark = (card) => card.gate && (!card.gate.good ? h("span", { class: "badge bad", title: shown(card.gate.why) }, "not good enough")
  : card.gate.tries.length > 1 && h("span", { class: "badge", title: shown(card.gate.why) }, `try ${card.gate.kept + 1} of ${card.gate.tries.length}`));
const gate = (card) => card.gate && h("div", { class: "gate" },
  h("p", {}, h("b", {}, `Try ${card.gate.kept + 1} kept: `), shown(card.gate.why)),
  card.gate.tries.length > 1 && h("ol", {}, card.gate.tries.map((each) => h("li", { class: each.kept ? "kept" : null,
    title: Object.entries(each.scores).map(([name, value]) => `${name} ${value.toPrecision(4)}`).join("\n") || null },
  each.seed !== null && [`seed ${each.seed}: `], shown(each.words)))));
const rest = (card) => {
  const code = (text) => text && h("code", {}, shown(text));
  const lines = [
    ["Id", card.id !== null && code(card.id)],
    ["Key", code(card.key)], ["File", card.href && card.playable ? h("a", { href: card.href }, shown(card.uri)) : card.uri && shown(card.uri)],
    ["Size", card.bytes && bytes(card.bytes)], ["SHA-256", code(card.sha256)], ["Attempt", card.attempt !== null && String(card.attempt)],
    ["Latents", card.num_latents !== null && count(card.num_latents)],
    ["Times", timeOf(card) > 0 && stages.map((stage, at) => `${stage.replace("_", " ")} ${seconds(card.timings[at])}`).join(" · ")],
    ["Waited", card.queue_wait_s > 0 && seconds(card.queue_wait_s)], ["Device", card.device && shown([card.device, card.node].filter(Boolean).join(" on "))],
    ["Peak memory", card.peak_memory_bytes && bytes(card.peak_memory_bytes)],
    ["Scores", Object.keys(card.scores).length > 0 && scoresOf(card)],
    ["Consistency", card.mean_consistency !== null && `${card.mean_consistency.toFixed(4)} in the mean`], ["Made", card.created_at],
    ["Carried along", card.metadata && h("pre", {}, shown(card.metadata))],
  ];
  return h("details", { class: "rest" }, h("summary", {}, "Details"),
    h("dl", {}, lines.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
};
const remedy = (text) => text.split("`").map((part, at) => at % 2 ? h("code", {}, part) : part);
const failure = (card) => h("div", { class: "failure" }, h("strong", {}, shown(card.error_type || "Failed")),
  h("p", { dir: "auto" }, shown(card.error)), h("p", { class: "remedy" }, h("b", {}, "Remedy: "), remedy(shown(card.remedy))));
const began = (card) => card.pictures && h("p", { class: "began" }, card.pictures.flatMap(({ is, name, source }) => [
  is === "image" ? "From " : " to ", source ? h("img", { src: source, alt: shown(name), title: shown(name) }) : h("code", {}, shown(name))]));
const nameOf = (card) => card.id === null || card.id === String(card.row) ? `row ${card.row}` : `${shown(card.id)} · row ${card.row}`;

const build = (card) => {
  const failed = card.status === "failed";
  const { node: top, video } = failed ? { node: failure(card), video: null } : screen(card);
  const turns = prompts(card, video), plot = trace(card, video);
  if (video) followers.set(video, (time) => { plot?.move(time); turns.move?.(time); });
  const act = (name, title, action) => h("button", { type: "button", class: "act", title, onclick: action }, name);
  return h("article", { class: `card ${card.status}`, "data-row": card.row, "data-position": card.position, "aria-label": nameOf(card) }, top,
    h("div", { class: "body" }, turns.nodes,
      h("div", { class: "head" }, failed && h("span", { class: "badge bad" }, "failed"),
        card.attempt > 1 && h("span", { class: "badge" }, `attempt ${card.attempt}`), gateMark(card),
        h("a", { class: "at", href: `#row=${card.row}`, title: "Link to this row" }, nameOf(card)),
        !failed && act("Enlarge", "Enlarge, and step by frame", () => openViewer([card])),
        !failed && act("Compare", "Beside another video", () => compare(card))),
      card.negative_prompt && h("p", { class: "negative", dir: "auto" }, "Not: ", shown(card.negative_prompt)),
      began(card), plot?.node, times(card), figures(card), gate(card), rest(card)));
};
