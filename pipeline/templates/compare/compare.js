"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const SMALL = 128, BATCH = 20;
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const inView = new Set(); // pairs that are seen
  const h = (name, props = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(props)) if (value !== undefined) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const number = (value) => value === undefined || value === null ? "–" : Math.abs(value) >= 100 ? value.toFixed(1) : value.toPrecision(4);

  // --- a pair plays in step: the one that is ahead waits; where one ends, both begin anew together ------------------
  class Pair {
    constructor(pair) {
      this.pair = pair;
      this.videos = [];
      this.stopped = false;
      const figures = pair.videos.map((about, index) => {
        const caption = h("figcaption", {}, data.systems[index]);
        caption.title = `row ${about.row}`;
        let shown;
        if (about.plays) {
          shown = h("video", { muted: "", playsinline: "", preload: "metadata", "data-src": about.href,
            "aria-label": `${data.systems[index]}: ${pair.prompts[0]}`.slice(0, 200) });
          shown.muted = true;
          if (about.width && Math.min(about.width, about.height) < SMALL) shown.className = "pixels";
          shown.style.aspectRatio = `${about.width || 16} / ${about.height || 9}`;
          shown.addEventListener("error", () => { if (shown.hasAttribute("src")) shown.replaceWith(this.lost(about)); });
          this.videos.push(shown);
        } else {
          shown = h("div", { class: "note" }, about.why);
        }
        const scores = data.metrics.filter((metric) => metric in about.scores).map((metric) => `${metric} ${number(about.scores[metric])}`);
        caption.append(h("br"), scores.join(" · "));
        return h("figure", {}, shown, caption);
      });
      this.slider = h("input", { type: "range", min: "0", max: "1", step: "any", value: "0", "aria-label": "time" });
      this.button = h("button", { type: "button" }, "Pause");
      this.slider.addEventListener("input", () => { this.stop(true); this.seek(Number(this.slider.value)); });
      this.button.addEventListener("click", () => this.stop(!this.stopped));
      const seed = h("small", {}, ` seed ${pair.seed ?? "–"}`);
      this.node = h("section", { class: "pair" }, h("h2", {}, pair.prompts.join(" → "), seed), h("div", { class: "videos" }, ...figures),
        h("div", { class: "time" }, this.button, this.slider));
      this.node.pair = this;
    }
    lost(about) {
      this.videos = this.videos.filter((video) => video.isConnected && !video.error);
      return h("div", { class: "note", role: "alert" }, "This video cannot be played: is it still at ", h("a", { href: about.href }, about.href), "?");
    }
    load() { for (const video of this.videos) if (!video.hasAttribute("src")) video.src = video.dataset.src; }
    unload() { for (const video of this.videos) if (video.hasAttribute("src")) { video.pause(); video.removeAttribute("src"); video.load(); } }
    stop(on) { this.stopped = on; this.button.textContent = on ? "Play" : "Pause"; if (on) for (const video of this.videos) video.pause(); }
    get length() { return Math.max(0, ...this.videos.map((video) => video.duration || 0)); }
    seek(share) { const at = share * this.length; for (const video of this.videos) video.currentTime = Math.min(at, video.duration || 0); }
    step() {
      const { videos } = this;
      if (!videos.length || this.stopped || !playing || videos.some((video) => video.readyState < 2)) return;
      if (videos.every((video) => video.ended)) { for (const video of videos) video.currentTime = 0; return; }
      const running = videos.filter((video) => !video.ended);
      const behind = Math.min(...running.map((video) => video.currentTime));
      const isStalled = running.some((video) => video.readyState < 3);
      for (const video of running) {
        const waits = video.currentTime > behind + 1 / (this.pair.fps || 8) || (isStalled && video.readyState >= 3);
        if (waits) video.pause(); else if (video.paused) video.play().catch(() => {});
      }
      this.slider.value = String(behind / (this.length || 1));
    }
  }

  // --- what is seen -------------------------------------------------------------------------------------------------
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) { inView.add(target.pair); target.pair.load(); } else { inView.delete(target.pair); target.pair.unload(); }
    }
  }, { rootMargin: "300px" });
  const more = new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) add(); });
  let waiting = [];
  const end = h("div");
  const add = () => {
    for (const pair of waiting.splice(0, BATCH)) {
      const { node } = new Pair(pair);
      byId("pairs").append(node);
      seen.observe(node);
    }
    byId("pairs").append(end);
    more.unobserve(end);
    if (waiting.length) more.observe(end);
    byId("shown").textContent = `${byId("pairs").querySelectorAll(".pair").length} of ${data.pairs.length} pairs shown`;
  };
  const orders = [["as in the prompt file", () => 0]];
  for (const metric of data.metrics) {
    data.systems.slice(1).forEach((name, index) => {
      const apart = (pair) => { const d = pair.videos[index + 1].scores[metric] - pair.videos[0].scores[metric]; return Number.isFinite(d) ? d : null; };
      for (const [words, sign] of [["less", 1], ["more", -1]]) {
        orders.push([`${metric}: ${name} ${words} than ${data.systems[0]}`, (a, b) => {
          const [x, y] = [apart(a), apart(b)];
          return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
        }]);
      }
    });
  }
  orders.forEach(([words], index) => byId("order").append(h("option", { value: index }, words)));
  const draw = () => {
    for (const node of byId("pairs").querySelectorAll(".pair")) { seen.unobserve(node); node.pair.unload(); }
    inView.clear();
    byId("pairs").replaceChildren();
    waiting = [...data.pairs].sort(orders[Number(byId("order").value)][1]);
    add();
  };
  byId("order").addEventListener("change", draw);
  const setPlaying = (on) => {
    playing = on;
    byId("play").textContent = on ? "Pause all" : "Play all";
    byId("play").setAttribute("aria-pressed", String(on));
    if (!on) for (const video of document.querySelectorAll("video")) video.pause();
  };
  byId("play").addEventListener("click", () => setPlaying(!playing));
  const step = () => { for (const pair of inView) pair.step(); requestAnimationFrame(step); };
  setPlaying(playing);
  draw();
  requestAnimationFrame(step);
})();
