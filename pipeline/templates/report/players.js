// --- latents and time ----------------------------------------------------------------------------------------------
// Latent 0 makes one frame, each later one `per` frames: position x on the axis of latents <-> time in the video.
const perLatent = (card) => card.num_latents > 1 ? Math.max((card.num_frames - 1) / (card.num_latents - 1), 1e-9) : 1;
const latentAt = (card, time) => {
  const frame = time * (card.fps || 1);
  return frame < 1 ? frame : 1 + (frame - 1) / perLatent(card);
};
const timeAt = (card, latent) => (latent < 1 ? latent : 1 + (latent - 1) * perLatent(card)) / (card.fps || 1);

// --- playing -------------------------------------------------------------------------------------------------------
const grid = byId("cards");
const SMALL = 128; // a side of so few pixels is enlarged pixel by pixel, not blurred
const isSmall = (card) => card.width > 0 && card.height > 0 && Math.min(card.width, card.height) < SMALL;
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
const inView = new Set();      // videos that are seen
const stopped = new WeakSet(); // videos that the reader has paused
const ours = new WeakSet();    // videos whose next pause is this script's doing
const followers = new Map();   // video -> what follows its time (the plot's cursor, the prompt in turn)

const start = (video) => { if (video.paused && !stopped.has(video) && !viewer.open) video.play().catch(() => {}); };
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

const videoOf = (card, props = {}) => {
  const label = `Video ${card.id ?? card.row}: ${(card.prompts[0] ?? "").slice(0, 200)}`;
  const video = h("video", { class: isSmall(card) && "pixels", loop: true, playsinline: true, "aria-label": shown(label), ...props });
  video.muted = true;
  video.defaultMuted = true;
  return video;
};
const notPlayed = (card) => h("div", { class: "note", role: "alert" }, "The video cannot be played: is it still where this page looks for it? ",
  h("a", { href: card.href }, shown(card.uri)));
const whereItIs = (card) => h("div", { class: "note" },
  card.href ? h("a", { href: card.href, rel: "noreferrer" }, shown(card.uri)) : shown(card.uri), h("br"), card.why);

// frames of the video side by side in one picture: one is shown, the pointer chooses which
const poster = (card) => {
  const image = h("img", { src: strips[card.position], alt: "", class: isSmall(card) && "pixels" });
  image.style.width = `${100 * data.tiles}%`;
  const node = h("div", { class: "poster", role: "img", "aria-label": `Frames of video ${shown(card.id ?? card.row)}` }, image);
  node.style.aspectRatio = `${card.width || 16} / ${card.height || 9}`;
  node.addEventListener("pointermove", (event) => {
    const box = node.getBoundingClientRect();
    const at = Math.min(data.tiles - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * data.tiles)));
    image.style.transform = `translateX(${(-100 * at) / data.tiles}%)`;
  });
  node.addEventListener("pointerleave", () => { image.style.transform = ""; });
  return node;
};
const strip = (card, video) => strips[card.position] && h("img", { class: `strip ${isSmall(card) ? "pixels" : ""}`, src: strips[card.position],
  alt: `${data.tiles} frames, first to last`, title: "First to last frame", onclick: (event) => {
    const box = event.target.getBoundingClientRect(), tile = Math.floor(((event.clientX - box.left) / box.width) * data.tiles);
    if (video?.duration) video.currentTime = (Math.min(tile, data.tiles - 1) / (data.tiles - 1)) * (video.duration - 0.01);
  } });

const screen = (card) => {
  if (!card.playable) {
    if (!strips[card.position]) return { node: h("div", { class: "screen apart" }, whereItIs(card)), video: null };
    return { node: h("div", {}, h("div", { class: "screen" }, poster(card)), strip(card, null), h("div", { class: "screen apart" }, whereItIs(card))), video: null };
  }
  const video = videoOf(card, { controls: true, preload: "metadata" });
  video.dataset.src = card.href;
  const box = h("div", { class: "screen" }, video);
  video.addEventListener("pause", () => { if (!ours.delete(video) && !video.ended) stopped.add(video); });
  video.addEventListener("play", () => stopped.delete(video));
  video.addEventListener("error", () => {
    if (!video.hasAttribute("src")) return;
    near.unobserve(video);
    seen.unobserve(video);
    inView.delete(video);
    box.classList.add("apart");
    box.replaceChildren(notPlayed(card));
  });
  near.observe(video);
  seen.observe(video);
  const frames = strip(card, video);
  return { node: frames ? h("div", {}, box, frames) : box, video };
};
const seek = (video, card, latent) => {
  if (!video || !video.readyState) return;
  video.currentTime = Math.min(Math.max(timeAt(card, latent) + 0.001, 0), (video.duration || 1) - 0.01);
  followers.get(video)?.(video.currentTime);
};
