// The rater's page: joins, shows pairs, sends votes. Text from the study goes in as text, never as markup.
"use strict";

(() => {
  const get = (id) => document.getElementById(id);
  const screens = ["no-access", "welcome", "rating", "done", "broken"];
  const speeds = [1, 0.5, 0.25];
  const keys = {
    ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right",
    ArrowUp: "tie", 3: "tie", ArrowDown: "both_bad", 4: "both_bad",
  };
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const loaded = new Map(); // token -> the clips of a pair, loading since the pair was known
  let current = null, beyond = false, busy = false, seen = 0, since = 0;

  const show = (name) => {
    for (const each of screens) get(each).hidden = each !== name;
    const rating = name === "rating";
    get("tools").hidden = !rating && name !== "done";
    get("help").hidden = !rating;
    if (!rating && current) { current.playback.pause(); current = null; }
  };

  class Refused extends Error {
    constructor(status, said) { super(said.message || "the server did not answer as expected"); this.status = status; this.code = said.error; }
  }

  const post = async (path, body) => {
    const answer = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), credentials: "same-origin",
    });
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Refused(answer.status, said);
    return said;
  };

  // ---- pairs

  const clip = (described, label) => {
    const video = document.createElement("video");
    Object.assign(video, { muted: true, playsInline: true, preload: "auto", disablePictureInPicture: true, src: described.url });
    video.width = described.width;
    video.height = described.height;
    video.setAttribute("aria-label", label);
    return video;
  };

  const load = (pair) => {
    if (loaded.has(pair.token)) return loaded.get(pair.token);
    const videos = { left: clip(pair.left, "Left edit"), right: clip(pair.right, "Right edit"), source: clip(pair.source, "Source") };
    let reference = null;
    if (pair.reference) {
      reference = document.createElement("img");
      Object.assign(reference, { src: pair.reference, alt: "Reference" });
    }
    const playback = new Playback([videos.left, videos.right, videos.source], pair.left.fps, draw);
    const made = { pair, videos, reference, playback };
    loaded.set(pair.token, made);
    return made;
  };

  const present = async (made) => {
    const { pair, videos, reference, playback } = made;
    current = made;
    get("prompt").textContent = pair.prompt;
    get("edits").dataset.shape = pair.left.width > 1.25 * pair.left.height ? "wide" : "tall";
    get("stage").style.setProperty("--shape", String(pair.left.width / pair.left.height));
    for (const side of ["left", "right", "source"]) get(side).replaceChildren(videos[side]);
    get("reference-figure").hidden = !reference;
    get("reference").replaceChildren(...(reference ? [reference] : []));
    seen = 0;
    enable(false);
    show("rating");
    scrollTo(0, 0);
    try {
      await playback.ready();
    } catch {
      if (current === made) failed("A clip of this pair cannot be played in this browser.");
      return;
    }
    if (current !== made) return;
    since = document.hidden ? 0 : performance.now();
    playback.setRate(playback.rate);
    if (still.matches) playback.pause(); else playback.play();
    enable(true);
    document.body.dataset.ready = pair.token;
  };

  const take = (said) => {
    const { rater, progress, pairs } = said;
    get("who").textContent = rater.name;
    get("own-link").value = location.origin + rater.link;
    get("progress").hidden = false;
    get("count").textContent = `${progress.done} of ${progress.total}`;
    get("bar-fill").style.width = `${progress.total ? (100 * progress.done) / progress.total : 0}%`;
    get("bar").setAttribute("aria-valuenow", progress.done);
    get("bar").setAttribute("aria-valuemax", progress.total);
    get("undo").disabled = progress.done === 0;
    const kept = new Set(pairs.map((pair) => pair.token));
    for (const [token, made] of loaded) if (!kept.has(token)) { made.playback.close(); loaded.delete(token); }
    if (!pairs.length) return finish(progress);
    const made = load(pairs[0]);
    pairs.slice(1).forEach(load); // the next pair loads while this one is looked at
    present(made);
  };

  const finish = (progress) => {
    delete document.body.dataset.ready;
    get("done-text").textContent = progress.open_for_more
      ? `${progress.done} answers are kept. ${progress.open_for_more} more comparisons still lack votes: go on if you like, or close the page.`
      : `${progress.done} answers are kept, and every comparison you could judge has its votes. You can close the page.`;
    get("more").hidden = !progress.open_for_more;
    show("done");
  };

  // ---- votes

  const enable = (on) => { for (const button of get("vote").children) { button.disabled = !on; button.classList.remove("chosen"); } };
  const say = (text) => { get("status").textContent = text; };
  const used = () => (seen + (since ? performance.now() - since : 0)) / 1000;

  const failed = (text) => { get("broken-text").textContent = text; show("broken"); };

  const fail = (error) => {
    if (error.code === "no_access") return show("no-access");
    if (error.code === "no_name") { show("welcome"); get("name").focus(); return; }
    failed(error.message);
  };

  const vote = async (choice) => {
    if (!current || busy || get("vote").children[0].disabled) return;
    busy = true;
    const made = current, seconds = used();
    enable(false);
    get("vote").querySelector(`[data-choice=${choice}]`).classList.add("chosen");
    delete document.body.dataset.ready;
    for (let wait = 1; ; wait = Math.min(2 * wait, 15)) {
      try {
        const said = await post("/api/vote", { token: made.pair.token, choice, seconds, beyond });
        say("");
        busy = false;
        return take(said);
      } catch (error) {
        if (error instanceof Refused && error.status < 500) {
          busy = false;
          say(error.code === "already_voted" ? "This pair had a vote already, from another window." : "");
          return error.status === 409 ? refresh() : fail(error);
        }
        say(`Not saved yet: no connection. Trying again in ${wait} s.`); // the same vote again changes nothing
        await new Promise((resolve) => { setTimeout(resolve, 1000 * wait); });
      }
    }
  };

  const undo = async () => {
    if (busy || get("undo").disabled) return;
    busy = true;
    try {
      const said = await post("/api/undo", { beyond });
      busy = false;
      say(said.undone ? "The last vote is taken back." : "");
      take(said);
    } catch (error) {
      busy = false;
      if (error instanceof Refused) fail(error); else say("Not undone: no connection.");
    }
  };

  const refresh = async () => {
    try { take(await post("/api/next", { beyond })); } catch (error) {
      if (error instanceof Refused) fail(error); else failed("The study's server does not answer.");
    }
  };

  const join = async () => {
    const trouble = get("name-trouble");
    trouble.hidden = true;
    try {
      await post("/api/rater", { name: get("name").value });
      await refresh();
    } catch (error) {
      if (error.code === "no_access") return fail(error);
      trouble.textContent = error.message;
      trouble.hidden = false;
    }
  };

  // ---- player

  const draw = (at) => {
    if (!current) return;
    const { playback } = current, time = at ?? playback.time, duration = playback.duration || 1;
    if (document.activeElement !== get("seek") || playback.wanted) get("seek").value = Math.round((1000 * time) / duration);
    get("time").textContent = `${time.toFixed(1)} / ${duration.toFixed(1)} s`;
    get("play").dataset.playing = playback.wanted;
    get("play").setAttribute("aria-label", playback.wanted ? "Pause" : "Play");
    get("speed").textContent = { 1: "1×", 0.5: "½×", 0.25: "¼×" }[playback.rate];
  };
  const faster = () => { if (current) current.playback.setRate(speeds[(speeds.indexOf(current.playback.rate) + 1) % speeds.length]); };

  const playerKeys = {
    " ": (playback) => playback.toggle(), ",": (playback) => playback.step(-1), ".": (playback) => playback.step(1),
    j: (playback) => playback.seek(playback.time - playback.duration / 10), l: (playback) => playback.seek(playback.time + playback.duration / 10),
    r: (playback) => playback.seek(0), s: faster,
  };

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || get("helping").open) return;
    const field = event.target.closest?.("input, dialog");
    if (field && field.id === "name") { if (event.key === "Enter") join(); return; }
    if (get("rating").hidden && get("done").hidden) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.target.closest?.("button") && (key === " " || key === "Enter")) return;
    if (key === "u") { if (!event.repeat) undo(); return event.preventDefault(); }
    if (get("rating").hidden) return;
    if (key === "?") { get("helping").showModal(); return event.preventDefault(); }
    if (field && field.id === "seek" && key.startsWith("Arrow")) return;
    if (keys[key]) { event.preventDefault(); if (!event.repeat) vote(keys[key]); return; }
    if (playerKeys[key] && current) { event.preventDefault(); playerKeys[key](current.playback); }
  });

  document.addEventListener("visibilitychange", () => { // only time with the page in view counts
    if (!current) return;
    if (document.hidden) { if (since) seen += performance.now() - since; since = 0; } else since = performance.now();
  });

  for (const button of get("vote").children) button.addEventListener("click", () => { button.blur(); vote(button.dataset.choice); });
  get("undo").addEventListener("click", () => { get("undo").blur(); undo(); });
  get("help").addEventListener("click", () => { get("help").blur(); get("helping").showModal(); }); // else space opens it again
  get("close").addEventListener("click", () => get("helping").close());
  get("own-link").addEventListener("focus", () => get("own-link").select());
  get("play").addEventListener("click", () => { get("play").blur(); current?.playback.toggle(); });
  get("speed").addEventListener("click", () => { get("speed").blur(); faster(); });
  get("seek").addEventListener("input", () => current?.playback.seek((get("seek").value / 1000) * current.playback.duration));
  get("seek").addEventListener("change", () => get("seek").blur());
  for (const side of ["left", "right", "source"]) get(side).addEventListener("click", () => current?.playback.toggle());
  get("start").addEventListener("click", join);
  get("more").addEventListener("click", () => { beyond = true; refresh(); });
  get("again").addEventListener("click", () => location.reload());
  window.kiwi = { get playback() { return current?.playback; } }; // for tests, and for the curious

  refresh();
})();
