"use strict";
// The four charts. A chart is drawn again when its figures, its width or the colours change.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const clock = (at) => new Date(at * 1000).toLocaleTimeString();

/** A number in few signs: 1,234, 5.2, 1.2M. */
const short = (value) =>
  new Intl.NumberFormat("en", { notation: Math.abs(value) >= 1e5 ? "compact" : "standard", maximumFractionDigits: Math.abs(value) < 10 ? 1 : 0 }).format(value);

/** Rows per second at each point, over the ten seconds before it or the time from the point before. */
function rates(samples) {
  let from = 0;
  return samples.map((sample, index) => {
    while (from + 1 < index && samples[from + 1].at <= sample.at - 10) from += 1;
    const before = samples[from];
    if (index === from || sample.moved === null || before.moved === null) return null;
    return Math.max(0, (sample.moved - before.moved) / (sample.at - before.at));
  });
}

const KINDS = [
  {
    title: "Rows per second", unit: "/s", names: ["ten seconds", "a minute"],
    of: (samples) => [rates(samples), samples.map((one) => one.over_a_minute)],
  },
  { title: "Rows moved", unit: "", of: (samples) => [samples.map((one) => one.moved)], names: ["rows moved"] },
  {
    title: "Slowest commit", unit: " ms", names: ["milliseconds"],
    of: (samples) => [samples.map((one) => (one.commit_seconds === null ? null : one.commit_seconds * 1000))],
  },
  {
    title: "Messages", unit: "", names: ["visible", "in flight"],
    of: (samples) => [samples.map((one) => one.visible), samples.map((one) => one.in_flight)],
  },
];

function axis(more) {
  return { stroke: () => colour("--muted"), grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false }, ...more };
}

function series(name, index) {
  return {
    label: name, width: 2, points: { show: false }, dash: index ? [6, 4] : undefined,
    stroke: () => colour(index ? "--two" : "--one"),
  };
}

class Chart {
  constructor(kind, parent) {
    this.kind = kind;
    this.figure = document.createElement("figure");
    this.caption = document.createElement("figcaption");
    this.title = document.createElement("b");
    this.title.textContent = kind.title;
    this.caption.append(this.title);
    this.values = kind.names.map((name, index) => {
      const value = document.createElement("span");
      if (kind.names.length > 1) value.className = index ? "key two" : "key";
      this.caption.append(value);
      return value;
    });
    this.when = document.createElement("span");
    this.caption.append(this.when);
    // What a screen reader gets in the place of the drawing.
    this.drawing = document.createElement("div");
    this.drawing.setAttribute("role", "img");
    this.drawing.setAttribute("aria-label", kind.title);
    this.figure.append(this.caption, this.drawing);
    parent.append(this.figure);
    this.plot = new uPlot(this.options(), [[], ...kind.names.map(() => [])], this.drawing);
    new ResizeObserver(() => this.resize()).observe(this.figure);
  }

  options() {
    return {
      width: this.figure.clientWidth || 300, height: 180, legend: { show: false },
      cursor: { y: false, drag: { setScale: false } },
      scales: { y: { range: (plot, least, most) => [0, most > 0 ? most * 1.1 : 1] } },
      series: [{}, ...this.kind.names.map(series)],
      axes: [axis({ space: 70 }), axis({ size: 56, values: (plot, ticks) => ticks.map(short) })],
      hooks: { setCursor: [(plot) => this.showValues(plot.cursor.idx)] },
    };
  }

  resize() {
    const width = this.figure.clientWidth;
    if (width && width !== this.plot.width) this.plot.setSize({ width, height: 180 });
  }

  draw(samples) {
    this.plot.setData([samples.map((one) => one.at), ...this.kind.of(samples)]);
    this.showValues(this.plot.cursor.idx);
    this.drawing.setAttribute("aria-label", this.summary());
  }

  /** The figures at a point, or the last ones. */
  showValues(index) {
    const [times, ...columns] = this.plot.data;
    const at = index ?? times.length - 1;
    columns.forEach((column, number) => {
      const value = column[at];
      const name = columns.length > 1 ? `${this.kind.names[number]} ` : "";
      this.values[number].textContent = name + (value == null ? "N/A" : short(value) + this.kind.unit);
    });
    this.when.textContent = index == null ? "" : `at ${clock(times[at])}`;
  }

  summary() {
    const [times, ...columns] = this.plot.data;
    if (times.length === 0) return `${this.kind.title}: nothing yet`;
    const parts = columns.map((column, number) => {
      const known = column.filter((value) => value != null);
      if (known.length === 0) return `${this.kind.names[number]}: not known`;
      const most = short(Math.max(...known));
      return `${this.kind.names[number]}: ${short(known[known.length - 1])} now, ${most} at most`;
    });
    return `${this.kind.title} since ${clock(times[0])}. ${parts.join("; ")}`;
  }
}

class Charts {
  constructor(parent) {
    this.charts = KINDS.map((kind) => new Chart(kind, parent));
    const redraw = () => this.charts.forEach((chart) => chart.plot.redraw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  draw(samples) {
    this.charts.forEach((chart) => chart.draw(samples));
  }
}
