// Rectangles over a film, in whole pixels of the stored image: the reader's own, and one of another reader on demand.

const SVG = "http://www.w3.org/2000/svg", LEAST = 8, LINE = 2;

const within = (value, most) => Math.max(0, Math.min(most, Math.round(value)));

/** Return the rectangle between two points, cut at the image's edges; null where it is too small to mean one. */
export function boxOf(from, to, { columns, rows }) {
  const [left, right] = [from.x, to.x].sort((a, b) => a - b).map((x) => within(x, columns));
  const [top, bottom] = [from.y, to.y].sort((a, b) => a - b).map((y) => within(y, rows));
  return right - left < LEAST || bottom - top < LEAST ? null : { left, top, right, bottom };
}

/** Return a rectangle in the middle, for those who do not drag. */
export const middleBox = ({ columns, rows }) => boxOf({ x: columns * 0.375, y: rows * 0.375 }, { x: columns * 0.625, y: rows * 0.625 }, { columns, rows });

/** Return the rectangle moved by shares of the image, or its far edges alone; it stays within the image. */
export function shifted(box, dx, dy, size, { isEdge = false } = {}) {
  const [x, y] = [dx * size.columns, dy * size.rows];
  if (isEdge) return boxOf({ x: box.left, y: box.top }, { x: Math.max(box.left + LEAST, box.right + x), y: Math.max(box.top + LEAST, box.bottom + y) }, size);
  const right = Math.max(-box.left, Math.min(size.columns - box.right, x)), down = Math.max(-box.top, Math.min(size.rows - box.bottom, y));
  return boxOf({ x: box.left + right, y: box.top + down }, { x: box.right + right, y: box.bottom + down }, size);
}

/** The layer that shows them. */
export class Marks {
  constructor() {
    this.element = document.createElementNS(SVG, "svg");
    this.element.setAttribute("class", "marks");
    this.element.setAttribute("aria-hidden", "true"); // each stands in words beside the film
  }

  /** Show these: {mine, theirs} -> a rectangle or null. */
  show(size, kinds) {
    this.element.setAttribute("viewBox", `0 0 ${size.columns} ${size.rows}`);
    this.element.replaceChildren(...Object.entries(kinds).filter(([, box]) => box).flatMap(([kind, box]) => [rectangle("under", box), rectangle(kind, box)]));
  }

  /** Keep the lines as thin as they are, however large the film is. */
  scale(zoom) { this.element.style.setProperty("--line", `${LINE / zoom}px`); }
}

function rectangle(kind, { left, top, right, bottom }) {
  const element = document.createElementNS(SVG, "rect");
  for (const [name, value] of Object.entries({ class: kind, x: left, y: top, width: right - left, height: bottom - top })) element.setAttribute(name, value);
  return element;
}
