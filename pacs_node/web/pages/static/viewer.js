// One light box: grey pixels -> window -> screen, with zoom, pan and turn. It knows nothing of studies. There is no
// mirroring: a mirrored chest is a trap. The server drew 8 grey bits by the image's own window; this windows those.
// The heat map is a layer above the film: the pixels below stay what they are.

export const PRESETS = { sent: [128, 256], lungs: [96, 150], mediastinum: [168, 120], contrast: [128, 110] };
const MIDDLE = 128, FULL = 256;

export class LightBox {
  constructor(box, changed) {
    Object.assign(this, { box, changed, tool: "window", pointers: new Map() });
    this.layer = document.createElement("div");
    this.layer.className = "layer";
    this.film = document.createElement("canvas");
    this.heat = new Image();
    this.heat.alt = "";
    this.heat.hidden = true;
    this.layer.append(this.film, this.heat);
    this.listen();
    new ResizeObserver(() => { if (this.fitted) { this.fit(); this.place(); } }).observe(box);
  }

  /** Hang a picture that is decoded already. */
  show(image) {
    const width = this.film.width = image.naturalWidth, height = this.film.height = image.naturalHeight;
    const pen = this.film.getContext("2d", { willReadFrequently: true });
    pen.drawImage(image, 0, 0);
    const rgba = pen.getImageData(0, 0, width, height).data;
    this.grey = new Uint8Array(width * height);
    for (let i = 0; i < this.grey.length; i++) this.grey[i] = rgba[4 * i];
    this.out = new ImageData(width, height);
    this.out32 = new Uint32Array(this.out.data.buffer);
    Object.assign(this.layer.style, { width: `${width}px`, height: `${height}px` });
    this.box.replaceChildren(this.layer);
    this.reset();
  }

  /** Lay a picture over the film, or take it away with null. */
  cover(image, opacity = 0) {
    if (image && this.heat.src !== image.src) this.heat.src = image.src;
    this.heat.hidden = !image || !opacity;
    this.heat.style.opacity = opacity;
  }

  reset() { Object.assign(this, { centre: MIDDLE, width: FULL, inverted: false, turn: 0 }); this.fit(); }
  set(change) {
    Object.assign(this, change);
    this.width = Math.max(2, Math.min(2 * FULL, this.width));
    this.centre = Math.max(0, Math.min(255, this.centre));
    this.paint();
  }
  paint() { this.due ??= requestAnimationFrame(() => { this.due = null; this.window(); this.place(); this.changed?.(this); }); }

  window() { // linear VOI function, PS3.3 C.11.2.1.2
    if (!this.grey) return;
    const table = new Uint32Array(256), { centre, width } = this;
    for (let v = 0; v < 256; v++) {
      const y = Math.max(0, Math.min(255, ((v - (centre - 0.5)) / (width - 1) + 0.5) * 255)) | 0;
      table[v] = 0xff000000 | ((this.inverted ? 255 - y : y) * 0x010101);
    }
    for (let i = 0; i < this.grey.length; i++) this.out32[i] = table[this.grey[i]];
    this.film.getContext("2d").putImageData(this.out, 0, 0);
  }

  place() { this.layer.style.transform = `translate(${this.x}px, ${this.y}px) rotate(${this.turn}deg) scale(${this.zoom}) translate(-50%, -50%)`; }
  fit() {
    const { film: { width, height }, box: { clientWidth, clientHeight } } = this, [w, h] = this.turn % 180 ? [height, width] : [width, height];
    Object.assign(this, { fitted: true, x: 0, y: 0, zoom: Math.min(clientWidth / w, clientHeight / h) || 1 });
    this.paint();
  }
  actual() { Object.assign(this, { fitted: false, x: 0, y: 0, zoom: 1 / devicePixelRatio }); this.paint(); }
  rotate() { this.turn = (this.turn + 90) % 360; this.fitted ? this.fit() : this.paint(); }
  pan(dx, dy) { this.fitted = false; this.x += dx; this.y += dy; this.paint(); }
  magnify(factor, at = { x: 0, y: 0 }) { // `at`, from the middle of the box, stays under the pointer
    const zoom = Math.max(0.05, Math.min(16, this.zoom * factor)), k = zoom / this.zoom;
    Object.assign(this, { fitted: false, zoom, x: at.x - (at.x - this.x) * k, y: at.y - (at.y - this.y) * k });
    this.paint();
  }

  listen() {
    const { box, pointers } = this;
    const fromMiddle = (event) => { const r = box.getBoundingClientRect(); return { x: event.clientX - r.left - r.width / 2, y: event.clientY - r.top - r.height / 2 }; };
    box.addEventListener("contextmenu", (event) => event.preventDefault());
    box.addEventListener("wheel", (event) => { event.preventDefault(); this.magnify(event.deltaY < 0 ? 1.15 : 1 / 1.15, fromMiddle(event)); }, { passive: false });
    box.addEventListener("dblclick", () => this.fit());
    box.addEventListener("pointerdown", (event) => { box.setPointerCapture(event.pointerId); pointers.set(event.pointerId, event); });
    for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, (event) => pointers.delete(event.pointerId));
    box.addEventListener("pointermove", (event) => this.drag(event, fromMiddle));
    box.addEventListener("keydown", (event) => this.arrow(event));
  }

  drag(event, fromMiddle) {
    const { pointers } = this, before = pointers.get(event.pointerId);
    if (!before || !this.grey) return;
    const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
    if (pointers.size === 2) { // two fingers: pinch and pan, whatever the tool
      const other = [...pointers.values()].find((p) => p.pointerId !== event.pointerId), far = (p) => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY);
      this.magnify(far(event) / far(before), fromMiddle(event));
      this.pan(dx / 2, dy / 2);
    } else if (this.tool === "pan" || event.buttons & 6 || event.shiftKey) this.pan(dx, dy);
    else if (this.tool === "zoom") this.magnify(Math.exp(-dy / 200));
    else this.set({ width: this.width + dx * 0.6, centre: this.centre + dy * 0.4 }); // right: wider, up: brighter
    pointers.set(event.pointerId, event);
  }

  arrow(event) { // the same without dragging
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || !this.grey) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.shiftKey) this.pan(step[0] * 40, step[1] * 40);
    else this.set({ width: this.width + step[0] * 8, centre: this.centre + step[1] * 4 });
  }
}
