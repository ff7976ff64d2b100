// An engine's key/value cache: a cell for each block, or for some in a row, filled as much as they are.

import { count, element, percent, write } from "./text.js";

const CELL = 10; // CSS pixels, its gap included
const GAP = 2;

export class BlockMap {
  constructor() {
    this.title = element("h2");
    this.canvas = element("canvas", { class: "blocks", role: "img" });
    this.told = element("p");
    const legend = element("p", { class: "legend" }, element("span", { class: "held" }, "held by sequences"),
      element("span", { class: "cached" }, "free, still found by a prefix"), element("span", { class: "free" }, "free"));
    this.root = element("section", { class: "engine" }, this.title, this.canvas, this.told, legend);
    this.blocks = null;
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(engine) {
    write(this.title, title(engine));
    this.blocks = engine.blocks;
    const text = sentence(engine);
    write(this.told, text);
    if (this.canvas.getAttribute("aria-label") !== text) this.canvas.setAttribute("aria-label", text);
    this.draw();
  }

  draw() {
    const width = this.canvas.clientWidth;
    if (width === 0) return;
    const runs = this.blocks?.runs ?? [];
    const numCells = runs.reduce((sum, [cells]) => sum + cells, 0);
    const perLine = Math.max(1, Math.floor(width / CELL));
    const height = Math.max(1, Math.ceil(numCells / perLine)) * CELL;
    const ratio = devicePixelRatio;
    const [pixelsX, pixelsY] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== pixelsX || this.canvas.height !== pixelsY) {
      this.canvas.width = pixelsX;
      this.canvas.height = pixelsY;
      this.canvas.style.height = `${height}px`;
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    this.paint(pen, runs, perLine);
  }

  paint(pen, runs, perLine) {
    const colours = { held: resolved("held"), cached: resolved("cached"), free: resolved("free") };
    const size = CELL - GAP;
    let place = 0;
    for (const [cells, held, cached] of runs) {
      const heldHeight = (size * held) / this.blocks.per_cell;
      const cachedHeight = (size * cached) / this.blocks.per_cell;
      for (let cell = 0; cell < cells; cell += 1, place += 1) {
        const x = (place % perLine) * CELL;
        const y = Math.floor(place / perLine) * CELL;
        pen.fillStyle = colours.free;
        pen.fillRect(x, y, size, size);
        pen.fillStyle = colours.cached;
        pen.fillRect(x, y + size - heldHeight - cachedHeight, size, cachedHeight);
        pen.fillStyle = colours.held;
        pen.fillRect(x, y + size - heldHeight, size, heldHeight);
      }
    }
  }
}

function title(engine) {
  if (!engine.up) return `Engine ${engine.name} is ${engine.draining ? "drained" : "down"}`;
  return `Engine ${engine.name}: ${engine.device}${engine.draining ? ", takes no new work" : ""}`;
}

function sentence(engine) {
  const blocks = engine.blocks;
  if (blocks === null) {
    if (!engine.up) return engine.draining ? "An operator has taken it out of service." : "It is being started again.";
    return "The engine has not told of its blocks yet.";
  }
  const size = blocks.per_cell === 1 ? "" : `, ${blocks.per_cell} a cell`;
  const found = engine.prefix_queries ? `; prefix cache: ${percent(engine.prefix_hits, engine.prefix_queries)} of prompt tokens found` : "";
  return `${count(blocks.used)} of ${count(blocks.total)} blocks held (${percent(blocks.used, blocks.total)}), `
    + `${count(blocks.cached)} cached, ${blocks.block_size} tokens each${size}; ${count(engine.preemptions)} preemptions${found}`;
}

// light-dark() is not a colour to a canvas before the browser has made one of it.
function resolved(name) {
  const probe = document.querySelector(`.legend .${name}`);
  return getComputedStyle(probe, "::before").backgroundColor;
}
