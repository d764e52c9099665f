// Plays several clips as one: they start, pause, seek and change speed together, and are brought back when they drift.
"use strict";

class Playback {
  // videos: <video> elements, the first of which keeps the time; fps: frames a second, for steps.
  constructor(videos, fps, changed) {
    this.videos = videos;
    this.fps = fps;
    this.changed = changed;
    this.rate = 1;
    this.wanted = false; // whether it should play; a clip that waits for data holds the others back
    this.closed = false;
    for (const video of videos) {
      video.addEventListener("ended", () => this.whenEnded());
      video.addEventListener("waiting", () => this.hold());
    }
  }

  get duration() { return Math.max(...this.videos.map((video) => video.duration || 0)); }
  get time() { return Math.max(...this.videos.map((video) => video.currentTime)); }
  get drift() {
    const times = this.videos.map((video) => Math.min(video.currentTime, this.shortest));
    return Math.max(...times) - Math.min(...times);
  }
  get shortest() { return Math.min(...this.videos.map((video) => video.duration || 0)); }

  ready() { // all clips can play to their end; rejects where one cannot be played at all
    return Promise.all(this.videos.map((video) => new Promise((resolve, reject) => {
      if (video.error) return reject(video.error);
      if (video.readyState >= 3) return resolve();
      video.addEventListener("canplay", resolve, { once: true });
      video.addEventListener("error", () => reject(video.error), { once: true });
    })));
  }

  play() {
    if (this.closed) return;
    this.wanted = true;
    if (this.videos.every((video) => video.ended)) this.place(0);
    for (const video of this.videos) {
      video.playbackRate = this.rate;
      if (!video.ended) video.play().catch(() => {});
    }
    this.changed();
    cancelAnimationFrame(this.frame);
    this.follow();
  }

  pause() {
    this.wanted = false;
    clearTimeout(this.pending);
    cancelAnimationFrame(this.frame);
    this.videos.forEach((video) => video.pause());
    this.place(this.time); // the same frame in all
    this.changed();
  }

  toggle() { if (this.wanted) this.pause(); else this.play(); }

  place(seconds) {
    const time = Math.max(0, Math.min(seconds, this.duration));
    for (const video of this.videos) video.currentTime = Math.min(time, video.duration || 0);
    this.changed(time);
  }

  seek(seconds) {
    clearTimeout(this.pending);
    this.place(seconds);
    if (this.wanted) this.play();
  }

  step(frames) {
    this.pause();
    const last = Math.round(this.duration * this.fps) - 1;
    const shown = Math.min(Math.floor(this.time * this.fps + 0.01), last); // times are rounded, to microseconds or so
    this.place((Math.max(0, Math.min(shown + frames, last)) + 0.5) / this.fps); // the middle of a frame
  }

  setRate(rate) {
    this.rate = rate;
    this.videos.forEach((video) => { video.playbackRate = rate; });
    this.changed();
  }

  hold() { // a clip waits for data: so do the others
    if (!this.wanted || this.holding) return;
    this.holding = true;
    this.videos.forEach((video) => video.pause());
    this.ready().catch(() => {}).then(() => {
      this.holding = false;
      if (this.wanted && !this.closed) { this.place(Math.min(...this.videos.map((video) => video.currentTime))); this.play(); }
    });
  }

  follow() { // small drifts by speed, large ones by a jump
    if (!this.wanted || this.closed) return;
    const [lead, ...others] = this.videos;
    for (const video of others) {
      if (video.ended || lead.ended || this.holding) continue;
      const late = lead.currentTime - video.currentTime;
      if (Math.abs(late) > 0.2) video.currentTime = lead.currentTime;
      else video.playbackRate = Math.abs(late) > 0.02 ? this.rate * (1 + Math.max(-0.25, Math.min(0.25, late * 2))) : this.rate;
    }
    this.changed();
    this.frame = requestAnimationFrame(() => this.follow());
  }

  whenEnded() {
    if (!this.wanted || !this.videos.every((video) => video.ended)) return;
    clearTimeout(this.pending);
    this.pending = setTimeout(() => { this.place(0); this.play(); }, 350);
  }

  close() {
    this.closed = true;
    this.pause();
    for (const video of this.videos) { video.removeAttribute("src"); video.load(); }
  }
}
