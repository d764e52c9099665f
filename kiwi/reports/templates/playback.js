// Plays the clips of a card in step, only while the card is in full view, and of few cards at once. A clip is a link
// with its first frame until its card comes near, so that a long page opens at once, and so that without this script
// every clip can still be opened.
(() => {
  const MOST = 3; // cards that play by themselves at one time
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches || (navigator.connection && navigator.connection.saveData);
  let paused = still, rate = 1;
  const groups = [...document.querySelectorAll("[data-card]")].filter((card) => card.querySelector("[data-clip], video"))
    .map((card) => ({ card, videos: [], near: false, seen: false, wanted: false, on: false, clock: 0, button: null }));
  const open = (group) => {
    for (const link of group.card.querySelectorAll("a[data-clip]")) {
      const picture = link.firstElementChild, video = document.createElement("video");
      Object.assign(video, { className: picture.className, poster: picture.src, muted: true, playsInline: true, preload: "none", src: link.href });
      video.setAttribute("aria-label", picture.alt);
      link.replaceWith(video);
    }
    for (const video of group.card.querySelectorAll("video")) {
      if (group.videos.includes(video)) continue;
      group.videos.push(video);
      video.controls = false;
      video.loop = false;
      video.addEventListener("ended", () => {
        if (group.on && group.videos.every((each) => each.ended || each.error)) group.clock = setTimeout(() => begin(group), 350 / rate);
      });
    }
  };
  const begin = (group) => {
    clearTimeout(group.clock);
    if (!group.on) return;
    for (const video of group.videos) {
      video.playbackRate = rate;
      video.currentTime = 0;
      video.play().catch(() => {});
    }
  };
  const turn = (group, on) => {
    if (group.on === on) return;
    group.on = on;
    group.button.textContent = on ? "Pause" : "Play";
    if (on) { open(group); begin(group); return; }
    clearTimeout(group.clock);
    group.videos.forEach((video) => video.pause());
  };
  // What plays by itself: the cards in full view that are nearest to the middle of the window.
  const settle = () => {
    const middle = (group) => { const box = group.card.getBoundingClientRect(); return Math.abs((box.top + box.bottom) / 2 - innerHeight / 2) + Math.max(0, box.left) / 1e4; };
    const shown = paused ? [] : groups.filter((group) => group.seen).sort((one, other) => middle(one) - middle(other)).slice(0, MOST);
    for (const group of groups) turn(group, group.near && (group.wanted || (shown.includes(group) && group.wanted !== null)));
  };
  let waiting = 0;
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(settle, 120); };
  const choose = (group) => { group.near = true; group.wanted = group.on ? null : true; settle(); }; // null: held by hand
  for (const group of groups) {
    group.button = document.createElement("button");
    group.button.type = "button";
    group.button.className = "play";
    group.button.textContent = "Play";
    const title = group.card.querySelector(".rank");
    group.button.setAttribute("aria-label", `Play or pause: ${title ? title.textContent : "clips"}`);
    (group.card.querySelector("header") || group.card).append(group.button);
    group.card.addEventListener("click", (event) => {
      if (event.target === group.button || event.target.closest(".screen, .clip")) { event.preventDefault(); choose(group); }
    });
    for (const video of group.card.querySelectorAll("video")) video.controls = false; // they are for no script
  }
  const find = (card) => groups.find((each) => each.card === card);
  const nearby = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const group = find(entry.target);
      group.near = entry.isIntersecting;
      if (group.near) open(group); else group.wanted = false;
    }
    soon();
  }, { rootMargin: "120px" });
  const inView = new IntersectionObserver((entries) => {
    for (const entry of entries) find(entry.target).seen = entry.intersectionRatio >= 0.6;
    soon();
  }, { threshold: [0, 0.6, 1] });
  for (const group of groups) { nearby.observe(group.card); inView.observe(group.card); }
  addEventListener("scroll", soon, { passive: true });
  addEventListener("load", () => { // the page is open: now the rest, so that it prints whole
    const rest = () => { for (const image of document.querySelectorAll("img[loading=lazy]")) image.loading = "eager"; };
    setTimeout(rest, 1500);
    addEventListener("beforeprint", rest);
  });
  for (const bar of document.querySelectorAll("[data-controls]")) {
    bar.hidden = false;
    const toggle = bar.querySelector("[data-toggle]"), slow = bar.querySelector("[data-slow]");
    const label = () => { toggle.textContent = paused ? "Play" : "Pause"; };
    toggle.addEventListener("click", () => {
      paused = !paused;
      groups.forEach((group) => { group.wanted = false; });
      label();
      settle();
    });
    slow.addEventListener("click", () => {
      rate = rate === 1 ? 0.5 : 1;
      slow.setAttribute("aria-pressed", String(rate !== 1));
      groups.forEach((group) => group.videos.forEach((video) => { video.playbackRate = rate; }));
    });
    label();
  }
  // A page shown inside another one (srcdoc) would leave it by its own section links.
  if (location.protocol === "about:") document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    const place = link && document.getElementById(link.getAttribute("href").slice(1));
    if (place) { event.preventDefault(); place.scrollIntoView(); place.focus({ preventScroll: true }); }
  });
  // What is wider than the window can be scrolled by keys.
  const reach = () => {
    for (const box of document.querySelectorAll(".scroll, .cards, nav")) {
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0; else box.removeAttribute("tabindex");
    }
  };
  addEventListener("load", reach);
  addEventListener("resize", reach);
})();
