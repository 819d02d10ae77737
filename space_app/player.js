// Keeps the videos of each .at-player in step with its first one, and moves slider, clock and mark along.
// Everything listens on the document, since results are replaced again and again.
(() => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const videos = (player) => [...player.querySelectorAll("video")];

  function show(player) {
    const [first] = videos(player);
    const seconds = Number(player.dataset.seconds);
    const now = Math.min(first.currentTime, seconds);
    const seek = player.querySelector(".at-seek");
    if (document.activeElement !== seek || !first.paused) seek.value = now;
    player.querySelector(".at-clock").textContent = `${now.toFixed(1)} / ${seconds.toFixed(1)} s`;
    player.style.setProperty("--at-now", seconds ? now / seconds : 0);
    player.classList.toggle("at-in-given", now < Number(player.dataset.given || 0));
    player.classList.toggle("at-playing", !first.paused);
    player.querySelector(".at-play").setAttribute("aria-label", first.paused ? "Play" : "Pause");
    const bars = [...player.querySelectorAll(".at-bar")];
    const total = bars.reduce((sum, bar) => sum + Number(bar.style.flexGrow), 0);
    let left = (now / seconds) * total;
    for (const bar of bars) {
      const width = Number(bar.style.flexGrow);
      bar.classList.toggle("at-current", left >= 0 && left <= width);
      left = left > width ? left - width : -1;
    }
  }

  function jump(player, seconds) {
    for (const video of videos(player)) video.currentTime = Math.min(seconds, video.duration || seconds);
    show(player);
  }

  function play(player, on) {
    for (const video of videos(player)) on ? video.play().catch(() => {}) : video.pause();
  }

  function tick() {
    for (const player of document.querySelectorAll(".at-player")) {
      const [first, ...others] = videos(player);
      if (!first) continue;
      if (!player.dataset.ready) {
        player.dataset.ready = "1";
        first.addEventListener("ended", () => { jump(player, 0); play(player, true); });
        for (const event of ["play", "pause", "seeked"]) first.addEventListener(event, () => show(player));
        if (!calm) play(player, true);
      }
      if (first.paused) continue;
      for (const video of others) {
        if (Math.abs(video.currentTime - first.currentTime) > 0.08 && !video.seeking) video.currentTime = first.currentTime;
      }
      show(player);
    }
    requestAnimationFrame(tick);
  }
  requestAnimationFrame(tick);

  document.addEventListener("click", (event) => {
    const player = event.target.closest?.(".at-player");
    if (!player) return;
    const [first] = videos(player);
    if (event.target.closest(".at-play") || event.target.closest("video")) play(player, first.paused);
    const plot = event.target.closest(".at-plot");
    if (plot) {
      const box = plot.getBoundingClientRect();
      jump(player, (Number(player.dataset.seconds) * (event.clientX - box.left)) / box.width);
    }
  });

  document.addEventListener("input", (event) => {
    if (event.target.matches?.(".at-seek")) {
      const player = event.target.closest(".at-player");
      play(player, false);
      jump(player, Number(event.target.value));
    }
  });
})();
