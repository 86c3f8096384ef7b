// --- one video large, or two side by side, frame by frame ------------------------------------------------------------
const viewer = byId("viewer"), panes = byId("panes"), slider = byId("frame"), atFrame = byId("at-frame"), walk = byId("walk");
let viewed = [];    // [{ card, video }]
let onClose = () => {};

const fpsOf = (card) => card.fps || 1;
const lastFrame = (card) => Math.max((card.num_frames ?? Math.round(card.video_s * fpsOf(card))) - 1, 0);
const frameOf = ({ card, video }) => Math.min(Math.floor(video.currentTime * fpsOf(card) + 1e-3), lastFrame(card));
const players = () => viewed.filter(({ video }) => video);
const isRunning = () => players().some(({ video }) => !video.paused);
// the middle of a frame is shown as that frame, whatever the player rounds
const goTo = (frame) => {
  for (const { card, video } of players()) {
    const time = (Math.min(Math.max(frame, 0), lastFrame(card)) + 0.5) / fpsOf(card);
    if (Math.abs(video.currentTime - time) > 1e-4) video.currentTime = time; // a seek to where it is ends a video that is at its end
  }
};
const stepBy = (by) => {
  if (!players().length) return;
  run(false);
  goTo(frameOf(players()[0]) + by);
};
const run = (on) => {
  for (const { video } of players()) {
    video.loop = on;
    if (on) { video.playbackRate = Number(byId("speed").value); video.play().catch(() => {}); } else video.pause();
  }
  if (!on && players().length > 1) goTo(frameOf(players()[0]));
};
const showFrame = () => {
  const first = players()[0];
  if (first && viewer.open) {
    const frame = first.video.seeking ? Number(slider.value) : frameOf(first);
    if (!first.video.seeking) slider.value = String(frame);
    atFrame.textContent = `frame ${count(frame)} of ${count(lastFrame(first.card))} · ${seconds(frame / fpsOf(first.card))}`;
    byId("run").textContent = isRunning() ? "Pause" : "Play";
  }
  if (viewer.open) requestAnimationFrame(showFrame);
};
const pane = (card) => {
  const failed = card.status === "failed";
  const head = h("header", {}, h("h2", { dir: "auto" }, shown(card.prompts.join("\n→ ") || "no prompt")),
    h("p", {}, h("b", {}, nameOf(card)), card.mean_consistency !== null && ` · consistency ${card.mean_consistency.toFixed(4)}`));
  let video = null, node;
  if (failed) node = failure(card);
  else if (!card.playable) node = h("div", {}, strips[card.position] && poster(card), strip(card, null), whereItIs(card));
  else {
    video = videoOf(card, { src: card.href, preload: "auto" });
    node = h("div", { class: "stage" }, video);
    video.addEventListener("error", () => node.replaceChildren(notPlayed(card)));
    video.addEventListener("click", () => run(!isRunning()));
  }
  viewed.push({ card, video });
  return h("section", { class: "pane", "data-row": card.row }, node, head, figures(card));
};
const openViewer = (cards, closed = () => {}) => {
  for (const { video } of players()) video.removeAttribute("src");
  for (const video of inView) halt(video);
  viewed = [];
  onClose = closed;
  panes.replaceChildren(...cards.map(pane));
  panes.classList.toggle("two", cards.length > 1);
  const first = players()[0];
  byId("steps").hidden = !first;
  slider.max = String(first ? lastFrame(first.card) : 0);
  slider.value = "0";
  walk.hidden = cards.length > 1;
  if (!viewer.open) viewer.showModal();
  setRow(cards.length === 1 ? cards[0].row : null);
  run(playing);
  requestAnimationFrame(showFrame);
};
viewer.addEventListener("close", () => {
  for (const { video } of players()) { video.pause(); video.removeAttribute("src"); video.load(); }
  viewed = [];
  panes.replaceChildren();
  setRow(null);
  if (playing) for (const video of inView) start(video);
  onClose();
});
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("keydown", (event) => {
  if (event.target === slider || event.target.tagName === "SELECT") return;
  const action = {
    ",": () => stepBy(-1), ArrowLeft: () => stepBy(-1), ".": () => stepBy(1), ArrowRight: () => stepBy(1),
    Home: () => goTo(0), End: () => players().length && goTo(lastFrame(players()[0].card)),
    n: () => walkBy(1), p: () => walkBy(-1), " ": () => event.target.tagName !== "BUTTON" && run(!isRunning()),
  }[event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key !== " " || event.target.tagName !== "BUTTON") event.preventDefault();
  action();
});
byId("run").addEventListener("click", () => run(!isRunning()));
byId("back").addEventListener("click", () => stepBy(-1));
byId("on").addEventListener("click", () => stepBy(1));
byId("speed").addEventListener("change", (event) => { for (const { video } of players()) video.playbackRate = Number(event.target.value); });
slider.addEventListener("input", () => { run(false); goTo(Number(slider.value)); });
byId("close").addEventListener("click", () => viewer.close());
byId("full").addEventListener("click", () => panes.requestFullscreen?.());

// two side by side: the first is remembered until the second is chosen
let beside = null;
const pairing = byId("pairing");
const compare = (card) => {
  if (beside && beside.position !== card.position) {
    const two = [beside, card];
    choosePair(null);
    openViewer(two);
  } else choosePair(beside ? null : card);
};
const choosePair = (card) => {
  beside = card;
  pairing.hidden = !card;
  if (card) byId("pair").textContent = nameOf(card);
};
byId("unpair").addEventListener("click", () => choosePair(null));
