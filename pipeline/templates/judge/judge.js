"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const questions = JSON.parse(byId("data").textContent);
  const sides = [byId("left"), byId("right")];
  const choices = [["left", "Left"], ["tie", "No difference"], ["right", "Right"]];
  const SMALL = 128; // videos of so few pixels are enlarged, both alike, pixel by pixel
  let person = "", trial = null, phase = "join"; // join, loading, playing, asking, paused, done
  let answers = {}, at = 0, plays = 0, halted = null, sending = false;

  // --- what is on the screen ---------------------------------------------------------------------------------------
  const sections = { join: "join", loading: "study", playing: "study", asking: "study", paused: "paused", done: "done" };
  const rows = questions.map(({ name, text }, index) => {
    const row = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = text;
    row.append(legend, ...choices.map(([side, label]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "choice";
      button.dataset.side = side;
      button.textContent = label;
      button.addEventListener("click", () => { if (phase === "asking") { at = index; choose(side); } });
      return button;
    }));
    row.dataset.question = name;
    byId("questions").append(row);
    return row;
  });
  const isWhole = () => questions.every(({ name }) => name in answers);
  const words = {
    loading: () => "Loading both videos…",
    playing: () => plays ? "Playing again." : "Watch both videos to their end.",
    asking: () => isWhole() ? "Enter: next pair. Backspace: change an answer." : `Question ${at + 1} of ${questions.length}.`,
  };
  const show = (now) => {
    phase = now;
    for (const id of new Set(Object.values(sections))) byId(id).hidden = sections[phase] !== id;
    const asks = phase === "asking";
    rows.forEach((row, index) => {
      row.disabled = !asks;
      row.classList.toggle("now", asks && index === at && !isWhole());
      for (const button of row.querySelectorAll("button")) {
        button.setAttribute("aria-pressed", String(answers[row.dataset.question] === button.dataset.side));
      }
    });
    byId("back").disabled = !asks || at === 0;
    byId("next").disabled = !asks || !isWhole();
    byId("replay").disabled = !asks;
    byId("state").textContent = words[phase]?.() ?? "";
    document.body.dataset.phase = phase;
  };
  const say = (fault) => { byId("fault").textContent = fault; byId("fault").hidden = !fault; };

  // --- both play in step: the one that is ahead waits, so nothing is left out of either -----------------------------
  const haltBoth = () => { for (const video of sides) video.pause(); };
  const begin = () => {
    for (const video of sides) video.currentTime = 0;
    halted = null;
    show("playing");
    for (const video of sides) video.play().catch(() => {});
  };
  const isReady = (video) => video.readyState >= 3 || video.ended;
  const step = () => {
    if (phase === "playing") {
      const [left, right] = sides;
      if (left.ended && right.ended) {
        plays += 1;
        show("asking");
        focusNow();
      } else if (document.hidden) {
        haltBoth();
      } else {
        const apart = left.currentTime - right.currentTime, frame = 1 / (trial.fps || 8);
        const isStalled = !isReady(left) || !isReady(right);
        const hasEnded = left.ended || right.ended;
        if (hasEnded || (halted && (halted === left ? apart : -apart) <= frame / 4)) halted = null;
        if (!halted && !hasEnded && Math.abs(apart) > frame) halted = apart > 0 ? left : right;
        for (const video of sides) {
          const waits = video === halted || (isStalled && isReady(video) && !other(video).ended);
          if (waits && !video.paused) video.pause();
          else if (!waits && video.paused && !video.ended) video.play().catch(() => {});
        }
      }
    }
    requestAnimationFrame(step);
  };
  const other = (video) => sides[video === sides[0] ? 1 : 0];
  const focusNow = () => { if (!isWhole()) rows[at].querySelector("button").focus({ preventScroll: true }); else byId("next").focus(); };

  for (const video of sides) {
    video.addEventListener("canplaythrough", () => { if (phase === "loading" && sides.every(isReady)) begin(); });
    video.addEventListener("error", () => {
      if (!video.getAttribute("src")) return;
      haltBoth();
      say("A video of this pair cannot be played.");
      byId("unplayable").hidden = false;
    });
    video.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  // --- the server --------------------------------------------------------------------------------------------------
  const ask = async (path, values) => {
    let answer;
    try {
      answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values) });
    } catch {
      return [0, { error: "The program does not answer. Your answers so far are kept; start it again, then try once more." }];
    }
    try {
      const text = await answer.text();
      return [answer.status, answer.headers.get("Content-Type") === "application/json" ? JSON.parse(text) : { error: text }];
    } catch {
      return [0, { error: "The program's answer was cut off; try once more." }];
    }
  };
  const take = (next) => {
    trial = next;
    answers = {};
    at = plays = 0;
    byId("unplayable").hidden = true;
    byId("bar").hidden = false;
    byId("bar").max = next.total;
    byId("bar").value = next.done;
    byId("progress").textContent = next.trial === null ? `${next.total} of ${next.total} pairs` : `Pair ${next.done + 1} of ${next.total}`;
    if (next.trial === null) { unload(); show("done"); return; }
    const scale = Math.min(next.width, next.height) < SMALL ? Math.max(2, Math.floor(320 / Math.max(next.width, next.height))) : 1;
    show("loading");
    sides.forEach((video, index) => {
      video.width = next.width * scale;
      video.height = next.height * scale;
      video.classList.toggle("pixels", scale > 1);
      video.preload = "auto";
      video.src = index ? next.right : next.left;
      video.load();
    });
  };
  const unload = () => { for (const video of sides) { video.pause(); video.removeAttribute("src"); video.load(); } };
  const send = async (path, values) => {
    if (sending) return;
    sending = true;
    const [status, values_] = await ask(path, { person, ...values });
    sending = false;
    if (status === 200) { say(""); take(values_); return; }
    say(values_.error ?? "That did not work.");
    if (status === 409 && path === "/answer") { // answered in another window, or the program was started anew
      const [again, next] = await ask("/next", { person });
      if (again === 200) take(next);
    }
  };

  // --- what the reader does ----------------------------------------------------------------------------------------
  const choose = (side) => {
    answers[questions[at].name] = side;
    const open = questions.findIndex(({ name }) => !(name in answers));
    at = open < 0 ? questions.length : open;
    show("asking");
    if (at < questions.length) rows[at].querySelector("button").focus({ preventScroll: true }); else byId("next").focus();
  };
  const back = () => {
    if (at === 0) return;
    at -= 1;
    delete answers[questions[at].name];
    show("asking");
    rows[at].querySelector("button").focus({ preventScroll: true });
  };
  const next = () => { if (phase === "asking" && isWhole()) send("/answer", { trial: trial.trial, answers, plays }); };
  const pause = () => { unload(); show("paused"); byId("resume").focus(); };
  const replay = () => { if (phase === "asking") begin(); };
  byId("join").addEventListener("submit", (event) => { event.preventDefault(); person = byId("name").value.trim(); send("/join", {}); });
  byId("replay").addEventListener("click", replay);
  byId("pause").addEventListener("click", pause);
  byId("resume").addEventListener("click", () => send("/next", {}));
  byId("back").addEventListener("click", back);
  byId("next").addEventListener("click", next);
  byId("another").addEventListener("click", () => { byId("name").value = ""; byId("bar").hidden = true; byId("progress").textContent = ""; show("join"); byId("name").focus(); });
  byId("unplayable").addEventListener("click", () => send("/answer", { trial: trial.trial, answers: {}, plays }));
  const keys = { ArrowLeft: "left", 1: "left", ArrowDown: "tie", 2: "tie", ArrowRight: "right", 3: "right" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || phase === "join") return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (phase === "asking" && key in keys && at < questions.length) choose(keys[key]);
    else if (phase === "asking" && key === "Backspace") back();
    else if (phase === "asking" && key === "r") replay();
    else if (key === "p" && sections[phase] === "study") pause();
    else if (key === "Enter" && phase === "asking" && isWhole() && document.activeElement?.tagName !== "BUTTON") next();
    else return;
    event.preventDefault();
  });
  show("join");
  requestAnimationFrame(step);
})();
