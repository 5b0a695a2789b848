// One light box: a radiograph with window, zoom, pan and turn. It knows nothing of studies. There is no mirroring: a
// mirrored chest is a trap. Places are pixels of the stored image, whatever the size of the picture that is shown.
// The heat map and the marks are layers above the film: the pixels below stay what they are.

import { Greys } from "./greys.js";
import { Marks, boxOf, middleBox, shifted } from "./marks.js";

/** Of the image's own window: where the middle lies from dark to bright, and the share of it that is spanned. */
export const PRESETS = { sent: null, lungs: [0.375, 0.586], mediastinum: [0.656, 0.469], contrast: [0.5, 0.43] };
/** Longest sides that are asked for: the usual one, and one for looking closer. */
export const SIZES = [2048, 4096];
const WIDER = 0.6 / 256, BRIGHTER = 0.4 / 256, STEP = 16, QUIET_MS = 150, MOVE = 0.02;

export class LightBox {
  /** `source(window, size, signal)` draws from the stored pixels, window null = as sent; `changed`, `marked` hear of it. */
  constructor(box, { source, changed, marked }) {
    Object.assign(this, { box, source, changed, marked, tool: "window", pointers: new Map(), mine: null, theirs: null, why: "" });
    this.layer = document.createElement("div");
    this.layer.className = "layer";
    this.film = document.createElement("canvas");
    this.heat = new Image();
    this.heat.alt = "";
    this.heat.hidden = true;
    this.marks = new Marks();
    this.layer.append(this.film, this.heat, this.marks.element);
    this.listen();
    new ResizeObserver(() => { if (this.fitted) { this.fit(); this.place(); } }).observe(box);
  }

  /** Hang a picture as `greys.read` gives it. */
  show(film) {
    const { columns, rows } = film;
    this.size = { columns, rows };
    this.greys = new Greys(film);
    Object.assign(this.layer.style, { width: `${columns}px`, height: `${rows}px` });
    this.box.replaceChildren(this.layer);
    this.reset();
  }

  /** Lay a picture over the film, or take it away with null. */
  cover(image, opacity = 0) {
    if (image && this.heat.src !== image.src) this.heat.src = image.src;
    this.heat.hidden = !image || !opacity;
    this.heat.style.opacity = opacity;
  }

  /** Show the reader's own rectangle, and another reader's. */
  mark({ mine = this.mine, theirs = this.theirs }) {
    Object.assign(this, { mine, theirs });
    this.marks.show(this.size, { theirs, mine });
  }

  // ---- grey levels ----
  reset() {
    this.greys.reset();
    Object.assign(this.greys, { isInverted: false });
    Object.assign(this, { turn: 0 });
    this.fit();
    this.regrey();
  }
  invert() { this.greys.isInverted = !this.greys.isInverted; this.paint(); }
  preset(name) {
    if (PRESETS[name]) this.greys.place(...PRESETS[name]);
    else this.greys.reset();
    this.regrey();
  }
  regrey() { this.paint(); this.refineSoon(); }

  /** Have the node draw what is shown now, once the reader rests. */
  refineSoon() {
    clearTimeout(this.due);
    if (!this.pointers.size) this.due = setTimeout(() => this.refine(), QUIET_MS);
  }
  get wanted() { // a larger picture where this one is shown larger than it is; never a smaller one again
    const { columns, rows } = this.size, shown = Math.max(columns, rows) * this.zoom * devicePixelRatio, had = this.greys.exact.size;
    return Math.max(had, Math.max(columns, rows) > SIZES[0] && shown > SIZES[0] ? SIZES[1] : SIZES[0]);
  }
  async refine() {
    clearTimeout(this.due);
    const { greys, wanted: size } = this, { asked } = greys;
    if (!this.box.isConnected || (greys.isExact && size === greys.exact.size)) return;
    this.asking?.abort();
    const asking = this.asking = new AbortController();
    try {
      const film = await this.source(greys.isSent ? null : { centre: greys.centre, width: greys.width }, size, asking.signal);
      if (asking !== this.asking || asked !== greys.asked) return; // the reader has gone on
      greys.take(film, asked);
      this.why = "";
    } catch (error) {
      if (asking.signal.aborted) return;
      this.why = error.message;
    }
    this.paint();
  }

  paint() { this.frame ??= requestAnimationFrame(() => { this.frame = null; this.greys.draw(this.film); this.place(); }); }

  // ---- place ----
  place() {
    this.layer.style.transform = `translate(${this.x}px, ${this.y}px) rotate(${this.turn}deg) scale(${this.zoom}) translate(-50%, -50%)`;
    this.marks.scale(this.zoom);
    this.changed?.(this);
  }
  move(change) { Object.assign(this, change); this.paint(); this.refineSoon(); }
  fit() {
    const { size: { columns, rows }, box: { clientWidth, clientHeight } } = this, [w, h] = this.turn % 180 ? [rows, columns] : [columns, rows];
    this.move({ fitted: true, x: 0, y: 0, zoom: Math.min(clientWidth / w, clientHeight / h) || 1 });
  }
  actual() { this.move({ fitted: false, x: 0, y: 0, zoom: 1 / devicePixelRatio }); }
  rotate() { this.turn = (this.turn + 90) % 360; this.fitted ? this.fit() : this.paint(); }
  pan(dx, dy) { this.move({ fitted: false, x: this.x + dx, y: this.y + dy }); }
  magnify(factor, at = { x: 0, y: 0 }) { // `at`, from the middle of the box, stays under the pointer
    const zoom = Math.max(0.02, Math.min(16, this.zoom * factor)), k = zoom / this.zoom;
    this.move({ fitted: false, zoom, x: at.x - (at.x - this.x) * k, y: at.y - (at.y - this.y) * k });
  }
  fromMiddle(event) {
    const r = this.box.getBoundingClientRect();
    return { x: event.clientX - r.left - r.width / 2, y: event.clientY - r.top - r.height / 2 };
  }
  /** Return the pixel of the stored image under the pointer. */
  pixelAt(event) {
    const at = this.fromMiddle(event), [dx, dy] = [(at.x - this.x) / this.zoom, (at.y - this.y) / this.zoom], { columns, rows } = this.size;
    const [cos, sin] = [[1, 0], [0, 1], [-1, 0], [0, -1]][this.turn / 90];
    return { x: cos * dx + sin * dy + columns / 2, y: cos * dy - sin * dx + rows / 2 };
  }

  // ---- hands ----
  listen() {
    const { box, pointers } = this;
    box.addEventListener("contextmenu", (event) => event.preventDefault());
    box.addEventListener("wheel", (event) => { event.preventDefault(); if (this.greys) this.magnify(event.deltaY < 0 ? 1.15 : 1 / 1.15, this.fromMiddle(event)); }, { passive: false });
    box.addEventListener("dblclick", () => this.greys && this.fit());
    box.addEventListener("pointerdown", (event) => this.press(event));
    for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, (event) => {
      pointers.delete(event.pointerId);
      this.corner = null;
      if (this.greys && !pointers.size) this.refine();
    });
    box.addEventListener("pointermove", (event) => this.drag(event));
    box.addEventListener("keydown", (event) => this.key(event));
  }

  press(event) {
    this.box.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    const draws = this.greys && this.tool === "region" && this.pointers.size === 1 && event.button === 0 && !event.shiftKey;
    this.corner = draws ? this.pixelAt(event) : null; // a second finger is no drawing
  }

  drag(event) {
    const { pointers } = this, before = pointers.get(event.pointerId);
    if (!before || !this.greys) return;
    const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
    pointers.set(event.pointerId, event);
    if (pointers.size === 2) { // two fingers: pinch and pan, whatever the tool
      const other = [...pointers.values()].find((p) => p.pointerId !== event.pointerId), far = (p) => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY);
      this.magnify(far(event) / far(before), this.fromMiddle(event));
      this.pan(dx / 2, dy / 2);
    } else if (this.tool === "pan" || event.buttons & 6 || event.shiftKey) this.pan(dx, dy);
    else if (this.tool === "zoom") this.magnify(Math.exp(-dy / 200));
    else if (this.tool === "region") this.outline(event);
    else { this.greys.move(dx * WIDER, -dy * BRIGHTER); this.regrey(); } // right: wider, up: brighter
  }

  outline(event) {
    const box = this.corner && boxOf(this.corner, this.pixelAt(event), this.size);
    if (box) this.setMine(box);
  }
  setMine(box) { this.mark({ mine: box }); this.marked?.(box); }

  key(event) { // the same without dragging
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!this.greys || event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.tool === "region" && this.marked ? !this.keyOfRegion(event, step) : !step) return;
    event.preventDefault();
    event.stopPropagation();
    if (this.tool === "region" && this.marked) return;
    if (event.shiftKey) this.pan(step[0] * 40, step[1] * 40);
    else { this.greys.move(step[0] * STEP * WIDER, -step[1] * STEP * BRIGHTER); this.regrey(); }
  }

  /** Enter puts a rectangle in the middle, arrows move it, with Shift its far edges, Delete removes it; true = done. */
  keyOfRegion(event, step) {
    if (event.key === "Enter") this.setMine(this.mine ?? middleBox(this.size));
    else if (event.key === "Delete" || event.key === "Backspace") this.setMine(null);
    else if (step && this.mine) this.setMine(shifted(this.mine, step[0] * MOVE, step[1] * MOVE, this.size, { isEdge: event.shiftKey }) ?? this.mine);
    else return false;
    return true;
  }
}
