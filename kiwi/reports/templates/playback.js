// Plays the clips of a card in step, only while the card can be seen. A clip is a link with its first frame until its
// card comes near, so that a long page opens at once, and so that without this script every clip can still be opened.
(() => {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let paused = still, rate = 1;
  const cards = [...document.querySelectorAll("[data-card]")].map((card) => ({
    card, videos: [], seen: false, clock: 0,
  }));
  const open = (group) => {
    for (const link of group.card.querySelectorAll("a[data-clip]")) {
      const still = link.firstElementChild, video = document.createElement("video");
      Object.assign(video, { className: still.className, poster: still.src, muted: true, playsInline: true, preload: "auto", src: link.href });
      video.setAttribute("aria-label", still.alt);
      link.replaceWith(video);
    }
    for (const video of group.card.querySelectorAll("video")) {
      if (group.videos.includes(video)) continue;
      group.videos.push(video);
      video.controls = false;
      video.loop = false;
      video.addEventListener("ended", () => {
        if (group.videos.every((each) => each.ended || each.error)) group.clock = setTimeout(() => start(group), 350 / rate);
      });
    }
  };
  const start = (group) => {
    clearTimeout(group.clock);
    if (paused || !group.seen || !group.videos.length) return;
    for (const video of group.videos) {
      video.playbackRate = rate;
      video.currentTime = 0;
      video.play().catch(() => {});
    }
  };
  const stop = (group) => {
    clearTimeout(group.clock);
    group.videos.forEach((video) => video.pause());
  };
  for (const group of cards) {
    group.card.addEventListener("click", () => {
      if (group.videos.some((video) => !video.paused)) stop(group);
      else { group.seen = true; const held = paused; paused = false; start(group); paused = held; }
    });
  }
  for (const video of document.querySelectorAll("[data-card] video")) video.controls = false; // they are for no script
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const group = cards.find((each) => each.card === entry.target);
      if (entry.isIntersecting === group.seen) continue;
      group.seen = entry.isIntersecting;
      if (group.seen) { open(group); start(group); } else stop(group);
    }
  }, { rootMargin: "120px" });
  cards.forEach((group) => watch.observe(group.card));
  addEventListener("load", () => { // the page is open: now the rest, so that it prints whole
    for (const image of document.querySelectorAll("img[loading=lazy]")) image.loading = "eager";
  });
  for (const bar of document.querySelectorAll("[data-controls]")) {
    bar.hidden = false;
    const toggle = bar.querySelector("[data-toggle]"), slow = bar.querySelector("[data-slow]");
    const label = () => { toggle.textContent = paused ? "Play" : "Pause"; };
    toggle.addEventListener("click", () => { paused = !paused; label(); cards.forEach(paused ? stop : start); });
    slow.addEventListener("click", () => {
      rate = rate === 1 ? 0.5 : 1;
      slow.setAttribute("aria-pressed", String(rate !== 1));
      cards.forEach((group) => group.videos.forEach((video) => { video.playbackRate = rate; }));
    });
    label();
  }
})();
