// The grey levels of one radiograph. The node draws each window from the stored pixels; while a reader drags, this
// windows what it drew last, and says so. It knows neither page nor pointer.

const LEVELS = 256;

/** A drawn picture: its bitmap, and what the node says of it (`VOI-Window`, a dictionary of RFC 9651). */
export function read(bitmap, header, size) {
  const said = Object.fromEntries(header.split(", ").map((pair) => pair.split("=")));
  const number = (name) => Number(said[name]);
  return {
    bitmap, size, centre: number("center"), width: number("width"), rows: number("rows"), columns: number("columns"),
    voi: said.voi, unit: JSON.parse(said.unit), isInverse: said.inverse === "?1",
  };
}

/** Return the 8 grey bits of a bitmap. */
function greyOf(bitmap) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0);
  const rgba = pen.getImageData(0, 0, bitmap.width, bitmap.height).data, grey = new Uint8Array(bitmap.width * bitmap.height);
  for (let i = 0; i < grey.length; i++) grey[i] = rgba[4 * i];
  return grey;
}

export class Greys {
  constructor(film) {
    Object.assign(this, { own: film, isInverted: false });
    this.take(film, "sent");
    this.reset();
  }

  /** Keep a picture that the node drew: `asked` names its window. */
  take(film, asked) {
    const drawn = { ...film, grey: greyOf(film.bitmap), asked };
    if (asked === "sent") this.sent = drawn;
    this.exact = drawn;
  }

  reset() { Object.assign(this, { isSent: true, centre: this.own.centre, width: this.own.width, exact: this.sent }); }

  /** Choose another window, in the image's own units; kept where something can be seen by it. */
  set(centre, width) {
    const { own } = this, within = (value, low, high) => Math.max(low, Math.min(high, value));
    this.isSent = false;
    this.width = Number(within(width, own.width / 100, own.width * 4).toPrecision(7));
    this.centre = Number(within(centre, own.centre - 2 * own.width, own.centre + 2 * own.width).toPrecision(7));
  }

  /** Move by shares of the image's own window: wider, and brighter. */
  move(wider, brighter) {
    const { own } = this, up = own.isInverse ? 1 : -1;
    this.set(this.centre + up * brighter * own.width, this.width + wider * own.width);
  }

  /** Choose a window by its place in the image's own one: `middle` and `span` are shares of it, dark to bright. */
  place(middle, span) {
    const { own } = this, up = own.isInverse ? -1 : 1;
    this.set(own.centre + up * (middle - 0.5) * own.width, span * own.width);
  }

  get asked() { return this.isSent ? "sent" : `${this.centre}/${this.width}`; }
  get isExact() { return this.exact.asked === this.asked; }

  /** Draw into a canvas, unless it holds that already: exact where the node drew this window, else from the picture that holds more of it. */
  draw(canvas) {
    const from = this.isExact || this.isInside(this.exact) ? this.exact : this.sent, { bitmap, grey } = from;
    const wanted = `${this.asked} ${this.isInverted}`;
    if (this.drawn === wanted && this.drawnFrom === from) return;
    Object.assign(this, { drawn: wanted, drawnFrom: from });
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    if (this.out?.width !== bitmap.width || this.out.height !== bitmap.height) this.out = new ImageData(bitmap.width, bitmap.height);
    const table = this.table(from), out = new Uint32Array(this.out.data.buffer);
    for (let i = 0; i < grey.length; i++) out[i] = table[grey[i]];
    canvas.getContext("2d").putImageData(this.out, 0, 0);
  }

  isInside({ centre, width }) { return Math.abs(this.centre - centre) + this.width / 2 <= width / 2; }

  table(from) { // linear exact VOI function, PS3.3 C.11.2.1.3.2
    const table = new Uint32Array(LEVELS), isSame = from.asked === this.asked, top = LEVELS - 1;
    for (let level = 0; level < LEVELS; level++) {
      const share = this.own.isInverse ? 1 - level / top : level / top;
      const value = from.centre + (share - 0.5) * from.width;
      const shown = Math.max(0, Math.min(1, (value - this.centre) / this.width + 0.5));
      const grey = isSame ? level : Math.round(top * (this.own.isInverse ? 1 - shown : shown));
      table[level] = 0xff000000 | ((this.isInverted ? top - grey : grey) * 0x010101);
    }
    return table;
  }
}
