// Draws what `page.py` wrote. A cell is a byte: its highest bit is whether the token stayed, the rest is 0 for one that
// was not scored, or 1 + its rank (0..126) among the tokens of its frame set.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const state = { sample: 0, view: 0, other: -1, set: -1, order: "time" };
const COLOURS = ["#c2410c", "#1d4ed8"];
const HEAT = "255 122 24";

for (const sample of data.samples) {
  for (const view of sample.views) {
    view.cells = Uint8Array.from(atob(view.cells), (letter) => letter.charCodeAt(0));
  }
}

const sample = () => data.samples[state.sample];
const shownViews = () => [state.view, state.other].filter((n) => n >= 0).map((n) => sample().views[n]);
const kept = (cell) => cell >= 128;
const rank = (cell) => ((cell & 127) ? ((cell & 127) - 1) / 126 : null);

function cellsOf(view, frame) {
  const [, rows, columns] = sample().grid;
  return view.cells.subarray(frame * rows * columns, (frame + 1) * rows * columns);
}

function keptOf(view, frame) {
  return cellsOf(view, frame).reduce((sum, cell) => sum + kept(cell), view.beside[frame]);
}

function make(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value, textContent: text })));
  select.value = chosen;
}

function overlay(canvas, view, frame, colour) {
  const [, rows, columns] = sample().grid;
  const cells = cellsOf(view, frame);
  const [w, h] = [canvas.width / columns, canvas.height / rows];
  const [heat, dim] = [at("heat").value / 100, at("dim").value / 100];
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  cells.forEach((cell, number) => {
    const [x, y] = [(number % columns) * w, Math.floor(number / columns) * h];
    if (kept(cell)) return;
    pen.fillStyle = `rgb(0 0 0 / ${dim})`;
    pen.fillRect(x, y, w, h);
    pen.fillStyle = `rgb(${HEAT} / ${heat * (rank(cell) ?? 0) ** 3})`;
    pen.fillRect(x, y, w, h);
  });
  pen.lineWidth = Math.min(3, Math.max(1, Math.min(w, h) / 12));
  pen.strokeStyle = colour;
  cells.forEach((cell, number) => {
    const half = pen.lineWidth / 2;
    const [x, y] = [(number % columns) * w, Math.floor(number / columns) * h];
    if (kept(cell) && Math.min(w, h) >= 4) pen.strokeRect(x + half, y + half, w - pen.lineWidth, h - pen.lineWidth);
  });
}

function framed(frame, view, colour, width, scale = 1) {
  const image = make("img", { src: `data:image/jpeg;base64,${data.videos[sample().video][frame]}`, alt: `frame ${frame}` });
  const canvas = make("canvas");
  const box = make("div", { className: "frame" }, image, canvas);
  box.style.width = `${width}px`;
  image.decode().then(() => {
    canvas.width = width * scale;
    canvas.height = (canvas.width * image.naturalHeight) / image.naturalWidth;
    overlay(canvas, view, frame, colour);
  });
  return box;
}

function clock(seconds) {
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return `${h ? `${h}:${String(m).padStart(2, "0")}` : m}:${String(Math.floor(s)).padStart(2, "0")}`;
}

function framesInOrder() {
  const view = sample().views[state.view];
  const frames = state.order === "time" ? view.sets.map((_, frame) => frame) : view.ranked;
  return frames.filter((frame) => state.set < 0 || view.sets[frame] === state.set);
}

function drawSheet() {
  const views = shownViews();
  const width = Number(at("size").value);
  at("sheet").replaceChildren(...framesInOrder().map((frame) => {
    const counts = views.map((view, n) => make("b", { className: n ? "other" : "", textContent: keptOf(view, frame) }));
    const caption = make("figcaption", {}, `${frame} · ${clock(sample().seconds[frame])}`, make("span", {}));
    counts.forEach((count, n) => caption.lastChild.append(n ? " / " : "", count));
    const pair = make("div", { className: "pair" }, ...views.map((view, n) => framed(frame, view, n ? COLOURS[1] : "#fff", width, 2)));
    const figure = make("figure", { id: `frame-${frame}`, className: keptOf(views[0], frame) ? "kept" : "" }, pair, caption);
    figure.addEventListener("click", () => enlarge(frame));
    return figure;
  }));
}

function drawStrip() {
  const canvas = at("strip");
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio];
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const [wide, high] = [canvas.clientWidth, canvas.clientHeight - 16];
  const views = shownViews();
  const frames = views[0].sets.length;
  const counts = views.map((view) => view.sets.map((_, frame) => keptOf(view, frame)));
  const most = Math.max(1, ...counts.flat());
  const base = views.length > 1 ? high / 2 : high;
  const step = wide / frames;
  counts.forEach((of, n) => of.forEach((count, frame) => {
    const bar = (count / most) * (base - 2);
    const inSet = state.set < 0 || views[0].sets[frame] === state.set;
    pen.fillStyle = inSet ? COLOURS[n] : "#d9dce1";
    pen.fillRect(frame * step, n ? base + 1 : base - bar, Math.max(1, step - (step > 3 ? 1 : 0)), bar);
  }));
  pen.fillStyle = "#d9dce1";
  pen.fillRect(0, base, wide, 1);
  pen.fillStyle = "#6b7280";
  pen.font = "11px system-ui, sans-serif";
  const ticks = Math.min(frames, Math.max(2, Math.floor(wide / 110)));
  for (let tick = 0; tick < ticks; tick += 1) {
    const frame = Math.floor((tick * frames) / ticks);
    pen.fillText(clock(sample().seconds[frame]), frame * step, high + 13);
  }
  pen.fillText(`${most} tokens`, wide - 64, 10);
}

function verdict(view) {
  if (view.correct === null) return "";
  const word = view.correct === 1 ? "right" : view.correct === 0 ? "wrong" : `${Math.round(100 * view.correct)} %`;
  return make("span", { className: `verdict ${word}`, textContent: word });
}

function drawWords() {
  const now = sample();
  at("path").textContent = now.path.split(/[\\/]/).pop();
  at("path").title = now.path;
  at("question").textContent = now.question.trim();
  at("target").hidden = now.target === null;
  at("target").textContent = `right answer: ${now.target}`;
  const views = shownViews();
  const lines = views.map((view, n) => {
    const line = make("span", { className: n ? "other" : "" }, make("b", { textContent: view.name }));
    line.append(`: ${view.kept.toLocaleString("en")} of ${view.tokens.toLocaleString("en")} visual tokens kept`);
    if (view.answer !== null) line.append(`; answer: ${view.answer.trim() || "(empty)"} `, verdict(view));
    return line;
  });
  if (views.length > 1) {
    const both = views[0].cells.reduce((sum, cell, n) => sum + (kept(cell) && kept(views[1].cells[n])), 0);
    const first = views[0].cells.reduce((sum, cell) => sum + kept(cell), 0);
    lines.push(make("span", { id: "overlap", textContent: `${both} of ${first} kept cells are kept by both` }));
  }
  at("summary").replaceChildren(...lines);
}

function draw() {
  drawWords();
  drawStrip();
  drawSheet();
}

function fill() {
  const now = sample();
  state.view = Math.min(state.view, now.views.length - 1);
  state.other = Math.min(state.other, now.views.length - 1);
  const sets = Math.max(...now.views[state.view].sets) + 1;
  state.set = Math.min(state.set, sets - 1);
  const names = now.views.map((view, number) => [number, view.name]);
  options(at("view"), names, state.view);
  options(at("other"), [[-1, "nothing"], ...names], state.other);
  options(at("set"), [[-1, `all ${sets}`], ...Array.from({ length: sets }, (_, n) => [n, `${n + 1} of ${sets}`])], state.set);
  at("sample").value = state.sample;
  draw();
}

function step(name, by, least) {
  const limits = { sample: data.samples.length, view: sample().views.length, set: Math.max(...sample().views[state.view].sets) + 1 };
  const number = state[name] + by;
  if (number < least || number >= limits[name]) return;
  state[name] = number;
  fill();
}

function enlarge(frame) {
  const width = Math.min(560, window.innerWidth / (shownViews().length + 0.4));
  const text = at("large-text");
  const where = `frame ${frame} (the video's ${sample().indices[frame]}), ${sample().seconds[frame]} s, frame set ${sample().views[state.view].sets[frame] + 1}`;
  text.textContent = where;
  at("large-frames").replaceChildren(...shownViews().map((view, n) => {
    const box = framed(frame, view, n ? COLOURS[1] : "#fff", width, 2);
    const besides = view.beside[frame] ? `, and ${view.beside[frame]} beside the picture` : "";
    const title = `${view.name}: ${keptOf(view, frame) - view.beside[frame]} tokens kept${besides}; best score ${view.best[frame] ?? "none"}`;
    box.addEventListener("mousemove", (event) => {
      const [, rows, columns] = sample().grid;
      const area = box.getBoundingClientRect();
      const row = Math.min(rows - 1, Math.floor(((event.clientY - area.top) / area.height) * rows));
      const column = Math.min(columns - 1, Math.floor(((event.clientX - area.left) / area.width) * columns));
      const cell = cellsOf(view, frame)[row * columns + column];
      const place = rank(cell) === null ? "not scored" : `more relevant than ${Math.round(100 * rank(cell))} % of its frame set`;
      text.textContent = `${where}\nrow ${row + 1}, column ${column + 1}: ${kept(cell) ? "kept" : "dropped"}, ${place}`;
    });
    return make("div", {}, make("p", { textContent: title }), box);
  }));
  at("large").showModal();
}

at("large").addEventListener("click", (event) => event.target === at("large") && at("large").close());
for (const name of ["sample", "view", "other", "set"]) {
  at(name).addEventListener("change", (event) => { state[name] = Number(event.target.value); event.target.blur(); fill(); });
}
at("order").addEventListener("change", (event) => { state.order = event.target.value; event.target.blur(); draw(); });
for (const name of ["heat", "dim", "size"]) at(name).addEventListener("input", drawSheet);
at("previous").addEventListener("click", () => step("sample", -1, 0));
at("next").addEventListener("click", () => step("sample", 1, 0));
at("strip").addEventListener("click", (event) => {
  const frames = sample().views[state.view].sets.length;
  const frame = Math.min(frames - 1, Math.floor((event.offsetX / at("strip").clientWidth) * frames));
  const figure = at(`frame-${frame}`);
  if (!figure) return;
  document.querySelectorAll(".found").forEach((each) => each.classList.remove("found"));
  figure.classList.add("found");
  figure.scrollIntoView({ block: "center" });
});
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || at("large").open) return;
  const keys = { ArrowLeft: ["view", -1, 0], ArrowRight: ["view", 1, 0], ArrowUp: ["set", -1, -1], ArrowDown: ["set", 1, -1], p: ["sample", -1, 0], n: ["sample", 1, 0] };
  if (!keys[event.key]) return;
  event.preventDefault();
  step(...keys[event.key]);
});
window.addEventListener("resize", drawStrip);

options(at("sample"), data.samples.map((each, number) => [number, each.title]), 0);
at("sample-steps").hidden = data.samples.length < 2;
if (sample().views.length > 1 && data.samples.every((each) => each.views.length === 2)) state.other = 1;
fill();
