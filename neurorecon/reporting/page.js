"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js", "smooth");
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const films = [];

  /* A film is one video whose columns are the panels; each is drawn into a canvas of its own, so that the panels
     can't fall out of step and can wrap on a narrow screen. */
  for (const box of document.querySelectorAll(".film")) {
    const rate = Number(box.dataset.rate);
    const frames = Number(box.dataset.frames);
    const total = Number(box.dataset.total);
    const cellWidth = Number(box.dataset.cellWidth);
    const cellHeight = Number(box.dataset.cellHeight);
    const correlations = JSON.parse(box.dataset.correlations);
    const video = box.querySelector("video");
    const canvases = [...box.querySelectorAll("canvas")];
    const pens = canvases.map((canvas) => canvas.getContext("2d"));
    /* One sample from the middle of each block: averaging would mix it with its neighbours. */
    for (const pen of pens) pen.imageSmoothingEnabled = false;
    const button = box.querySelector(".play");
    const scrub = box.querySelector(".scrub");
    const now = box.querySelector(".now");
    const plot = box.querySelector(".plot");
    const playhead = box.querySelector(".playhead");
    const film = { video, wanted: !calm, visible: false };
    video.removeAttribute("controls");
    video.tabIndex = -1;

    const frameAt = (time) => Math.max(0, Math.min(frames - 1, Math.floor(time * rate + 0.01)));
    const show = (time) => {
      const frame = frameAt(time);
      pens.forEach((pen, index) => {
        /* Odd sides were padded to even ones in the video; whole blocks of pixels are taken, the padding isn't. */
        const { width, height } = canvases[index];
        const scale = Math.floor(cellWidth / width);
        pen.drawImage(video, index * cellWidth, 0, width * scale, height * scale, 0, 0, width, height);
      });
      scrub.value = frame;
      const r = correlations[frame];
      now.textContent = `${(frame / rate).toFixed(2)} s · frame ${frame} · r = ${r === null ? "n/a" : r.toFixed(2)}`;
      if (playhead) playhead.style.left = `${(100 * (frame + 0.5)) / total}%`;
    };
    const seek = (frame) => {
      video.currentTime = (Math.max(0, Math.min(frames - 1, frame)) + 0.5) / rate;
    };
    const follow = () => {
      if (video.requestVideoFrameCallback) {
        video.requestVideoFrameCallback((_, data) => { show(data.mediaTime); follow(); });
      } else {
        requestAnimationFrame(() => { if (!video.paused) show(video.currentTime); follow(); });
      }
    };
    film.update = () => {
      if (film.wanted && film.visible) video.play().catch(() => {});
      else video.pause();
    };
    const want = (playing) => { film.wanted = playing; film.visible ||= playing; film.update(); };
    film.want = (playing) => { film.wanted = playing; film.update(); };

    video.addEventListener("loadeddata", () => show(video.currentTime));
    video.addEventListener("seeked", () => show(video.currentTime));
    for (const event of ["play", "pause"]) {
      video.addEventListener(event, () => {
        button.textContent = video.paused ? "▶" : "❚❚";
        button.setAttribute("aria-label", video.paused ? "Play" : "Pause");
      });
    }
    video.addEventListener("ended", () => { film.wanted = false; });
    button.addEventListener("click", () => want(video.paused));
    scrub.addEventListener("input", () => { want(false); seek(Number(scrub.value)); });
    box.querySelector(".loop-box").addEventListener("change", (event) => { video.loop = event.target.checked; });
    if (plot) {
      const jump = (event) => {
        const area = plot.getBoundingClientRect();
        seek(Math.floor(((event.clientX - area.left) / area.width) * total));
      };
      plot.addEventListener("pointerdown", (event) => { plot.setPointerCapture(event.pointerId); jump(event); });
      plot.addEventListener("pointermove", (event) => { if (event.buttons) jump(event); });
    }
    if (video.readyState >= 2) show(video.currentTime);
    follow();
    new IntersectionObserver(([entry]) => {
      film.visible = entry.isIntersecting;
      film.update();
    }, { threshold: 0.25 }).observe(box);
    films.push(film);
  }

  if (films.length) {
    const playAll = document.getElementById("play-all");
    const label = () => { playAll.textContent = films.some((film) => film.wanted) ? "Pause all" : "Play all"; };
    playAll.addEventListener("click", () => {
      const playing = !films.some((film) => film.wanted);
      for (const film of films) film.want(playing);
      label();
    });
    for (const film of films) {
      for (const event of ["play", "pause"]) film.video.addEventListener(event, label);
    }
    label();
    const follow = (id, name) => {
      const box = document.getElementById(id);
      const apply = () => root.classList.toggle(name, box.checked);
      box.addEventListener("change", apply);
      apply();
    };
    follow("dim", "dim");
    follow("smooth", "smooth");
    document.getElementById("speed").addEventListener("change", (event) => {
      for (const film of films) film.video.playbackRate = Number(event.target.value);
    });
  }

  /* Sorting: numbers first large to small, names first A to Z; what is not defined stays last. */
  for (const table of document.querySelectorAll(".sortable")) {
    const headings = [...table.querySelectorAll("th")];
    headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
      const numeric = heading.classList.contains("num");
      const was = heading.getAttribute("aria-sort");
      const down = was ? was === "ascending" : numeric;
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.key;
      const compare = (a, b) => numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => {
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        return (down ? -1 : 1) * compare(key(a), key(b));
      });
      body.append(...rows);
    }));
  }

  /* What a link leads to is unfolded first. */
  const unfold = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    const folded = target && target.closest("details:not([open])");
    if (!folded) return;
    folded.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  unfold();

  /* Paper can't be unfolded; afterwards all is as it was. */
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.print-open:not([open])")];
    for (const box of opened) box.open = true;
  });
  addEventListener("afterprint", () => {
    for (const box of opened) box.open = false;
  });
})();
