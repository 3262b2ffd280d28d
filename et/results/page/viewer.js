// The descent, step by step: the completed picture and the energies of the two modules at every t.

const PANELS = [
  { key: "total", label: "Total energy" },
  { key: "attention", label: "Attention energy" },
  { key: "hopfield", label: "Hopfield energy" },
  { key: "mse_masked", label: "Error on hidden patches" },
];

const ICONS = {
  first: "M6 5v14 M19 5 9 12l10 7z",
  back: "M16 5 7 12l9 7z",
  play: "M7 4 20 12 7 20z",
  pause: "M7 4h4v16H7z M14 4h4v16h-4z",
  on: "M8 5l9 7-9 7z",
  last: "M18 5v14 M5 5l10 7-10 7z",
};
const icon = (name) => draw("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, draw("path", { d: ICONS[name] }));

function stacked(picture) {
  const image = (source, name) => make("img", { src: source, alt: "", class: name, draggable: "false" });
  return [...picture.frames.map((source, t) => image(source, `frame t${t}`)), image(picture.masked, "masked"),
    image(picture.original, "original")];
}

class Viewer {
  constructor(root, descents) {
    this.root = root;
    this.pictures = descents.flatMap((descent) => descent.pictures.map((picture) => ({
      ...picture, total: picture.attention.map((value, t) => value + picture.hopfield[t]), descent,
    })));
    this.view = "frame";
    this.build();
    this.choose(0);
  }

  build() {
    this.stage = make("div", { class: "stage", role: "img" });
    this.readout = make("p", { class: "readout" });
    this.slider = make("input", { type: "range", min: 0, step: 1, "aria-label": "Step t of the descent" });
    this.slider.addEventListener("input", () => { this.pause(); this.show(Number(this.slider.value), true); });
    const button = (label, name, act) => make("button", { type: "button", "aria-label": label, title: label, click: act },
      icon(name));
    this.playButton = button("Play", "play", () => (this.timer ? this.pause() : this.play()));
    this.playButton.classList.add("main");
    this.controls = make("div", { class: "controls" },
      button("First step", "first", () => this.stepTo(0)), button("One step back", "back", () => this.stepTo(this.t - 1)),
      this.playButton, button("One step on", "on", () => this.stepTo(this.t + 1)),
      button("Last step", "last", () => this.stepTo(this.last)), this.slider);
    this.panels = make("div", { class: "panels" });
    this.about = make("p", { class: "muted about" });
    this.root.replaceChildren(
      make("header", null, make("h2", { id: "viewer-title" }, "The descent, step by step"), this.choices()),
      make("div", { class: "view" }, make("div", { class: "left" }, this.stage, this.viewChoice()),
        make("div", { class: "right" }, this.readout, this.panels, this.controls)),
      this.about);
    this.root.hidden = false;
  }

  choices() {
    if (this.pictures.length < 2) return null;
    const select = make("select", { "aria-label": "Picture" }, this.pictures.map((picture, index) => {
      const run = data.runs[picture.descent.run];
      const whose = run ? `${run.experiment}, ${runName(run)}` : picture.descent.title;
      return make("option", { value: index }, `${picture.name} · ${whose}`);
    }));
    select.addEventListener("change", () => { this.pause(); this.choose(Number(select.value)); });
    return select;
  }

  viewChoice() {
    const choices = [["frame", "completed"], ["masked", "what the network sees"], ["original", "original"]];
    return make("fieldset", { class: "choice" }, make("legend", { class: "hidden-label" }, "Picture shown"),
      choices.map(([value, text]) => make("label", null, make("input", {
        type: "radio", name: "view", value, checked: value === "frame",
        change: () => { this.view = value; this.show(this.t, true); },
      }), make("span", null, text))));
  }

  choose(index) {
    const picture = this.pictures[index];
    this.picture = picture;
    this.last = picture.frames.length - 1;
    this.slider.max = this.last;
    this.stage.style.setProperty("--ratio", `${picture.width} / ${picture.height}`);
    this.stage.style.setProperty("--wide", picture.width / picture.height);
    this.stage.classList.toggle("small", picture.width < 200);
    this.stage.replaceChildren(...stacked(picture));
    const steps = picture.frames.map((_, t) => t), trained = picture.descent.trained_steps;
    this.charts = PANELS.map(({ key, label }) => ({
      key, ...lineChart({ steps, values: picture[key], label, kind: key, rule: trained < this.last ? trained : null }),
      number: make("output", null),
      label,
    }));
    this.panels.replaceChildren(...this.charts.map((chart) => make("figure", { class: `panel ${chart.key}` },
      make("figcaption", null, make("span", null, chart.label), chart.number), chart.svg, chart.ends)));
    const beyond = trained < this.last ? ` It was trained to stop at t = ${trained}; the dashed line shows where.` : "";
    const windows = picture.windows > 1 ? `; energies are means over ${picture.windows} windows completed one by one` : "";
    this.about.textContent = `Step size α = ${round(picture.descent.step_size)}${windows}.${beyond}`;
    this.show(0, false);
  }

  show(t, aloud) {
    this.t = t;
    this.slider.value = t;
    const picture = this.picture;
    for (const image of this.stage.children) {
      const shown = this.view === "frame" ? image.classList.contains(`t${t}`) : image.classList.contains(this.view);
      image.classList.toggle("shown", shown);
    }
    for (const chart of this.charts) {
      chart.move(t);
      chart.number.textContent = round(picture[chart.key][t]);
    }
    const what = { frame: `completed at step ${t}`, masked: "with its hidden patches grey", original: "as it is" }[this.view];
    this.stage.setAttribute("aria-label", `${picture.name}, ${what}`);
    this.readout.replaceChildren("t = ", make("strong", null, t), ` of ${this.last}`);
    const sentence = `Step ${t} of ${this.last}: ` + this.charts.map(({ key, label }) =>
      `${label.toLowerCase()} ${round(picture[key][t])}`).join(", ");
    this.slider.setAttribute("aria-valuetext", sentence);
    if (aloud) announce(sentence);
  }

  stepTo(t) {
    this.pause();
    this.show(Math.max(0, Math.min(this.last, t)), true);
  }

  play() {
    if (this.t === this.last) this.show(0, false);
    this.showPlaying("Pause", "pause");
    this.timer = setInterval(() => {
      this.show(this.t + 1, this.t + 1 === this.last);
      if (this.t === this.last) this.pause();
    }, 700);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.showPlaying("Play", "play");
  }

  showPlaying(label, name) {
    this.playButton.replaceChildren(icon(name));
    this.playButton.setAttribute("aria-label", label);
    this.playButton.title = label;
  }
}

function startViewer() {
  const root = byId("viewer");
  if (data.descents.length) return new Viewer(root, data.descents);
  root.replaceChildren(
    make("h2", { id: "viewer-title" }, "The descent, step by step"),
    make("p", null, "This page was made without a run folder that has a recorded descent. The demo leaves one:"),
    command("make demo"));
  root.hidden = false;
  return null;
}
