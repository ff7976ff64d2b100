// A figure with its last two minutes as a line.

import { element, write } from "./text.js";

const POINTS = 240; // two a second
const HEIGHT = 32;
const SVG = "http://www.w3.org/2000/svg";

export class Figure {
  // lines: one function of an event for each line, the first of which is the figure's large number
  constructor(title, lines, format, second = "") {
    this.lines = lines;
    this.format = format;
    this.second = second;
    this.history = lines.map(() => []);
    this.value = element("span");
    this.small = element("small");
    this.drawing = document.createElementNS(SVG, "svg");
    this.drawing.setAttribute("viewBox", `0 0 ${POINTS} ${HEIGHT}`);
    this.drawing.setAttribute("preserveAspectRatio", "none");
    this.drawing.setAttribute("aria-hidden", "true");
    this.drawing.classList.add("spark");
    this.paths = lines.map((_, place) => this.path(place));
    this.root = element("div", { class: "figure" }, element("h3", {}, title),
      element("p", {}, this.value, " ", this.small), this.drawing);
  }

  path(place) {
    const made = document.createElementNS(SVG, "path");
    if (place > 0) made.classList.add("second");
    this.drawing.append(made);
    return made;
  }

  show(event) {
    const values = this.lines.map((line) => line(event));
    values.forEach((value, place) => {
      this.history[place].push(value);
      if (this.history[place].length > POINTS) this.history[place].shift();
    });
    write(this.value, this.format(values[0]));
    write(this.small, values.length > 1 ? `${this.second} ${this.format(values[1])}` : this.second);
    const top = Math.max(...this.history.flat().map((value) => value ?? 0)) || 1;
    this.paths.forEach((path, place) => path.setAttribute("d", outline(this.history[place], top)));
  }
}

// The newest at the right edge; a gap where nothing is known.
function outline(values, top) {
  let drawing = "";
  let isBroken = true;
  values.forEach((value, place) => {
    if (value == null) {
      isBroken = true;
      return;
    }
    const x = POINTS - values.length + place;
    const y = HEIGHT - 1 - (value / top) * (HEIGHT - 3);
    drawing += `${isBroken ? "M" : "L"}${x} ${y.toFixed(1)}`;
    isBroken = false;
  });
  return drawing;
}
