// Draws a canvas: masks as soft blocks, words tinted by how unsure the model was. Only positions
// that changed are touched, at most once per screen refresh.
import { el } from "./dom.js";

// Masks shown beyond the block in progress; a short answer shall not stand before a wall of them.
const MASKS_AHEAD = 40;
// Each breathing mask is a layer of its own for the compositor.
const MAX_BREATHING = 48;
const MASK_WIDTHS = 5;
const TINTS = 10;

export class CanvasView {
  #cells = [];
  #shown = [];
  #state = null;
  #scheduled = 0;
  #window = [0, 0];

  constructor({ onPaint = () => {} } = {}) {
    this.root = el("div", { class: "canvas" });
    this.onPaint = onPaint;
  }

  // Draw a state at the next refresh; many calls before it cost one drawing.
  show(state) {
    if (this.#state !== state) {
      this.#state = state;
      this.#shown = [];
    }
    if (!this.#scheduled) this.#scheduled = requestAnimationFrame(() => this.paint());
  }

  paint() {
    cancelAnimationFrame(this.#scheduled);
    this.#scheduled = 0;
    const state = this.#state;
    if (state === null) return;
    const dirty = state.takeDirty();
    const end = visibleEnd(state);
    const isNew = dirty === null || this.#shown.length === 0;
    this.#grow(end);
    for (const position of isNew ? this.#cells.keys() : this.#touched(dirty, end)) {
      this.#paintCell(position, end);
    }
    this.#window = [state.blockStart, end];
    this.onPaint();
  }

  // What changed, and the masks that a new block brings near.
  #touched(dirty, end) {
    const [start, previousEnd] = this.#window;
    if (start === this.#state.blockStart && end === previousEnd) return dirty;
    const near = new Set(dirty);
    for (let position = start; position < Math.max(end, previousEnd); position += 1) near.add(position);
    return near;
  }

  #grow(end) {
    const added = [];
    while (this.#cells.length < end) {
      const cell = el("span", { class: "cell" }, document.createTextNode(""), el("span"));
      this.#cells.push(cell);
      added.push(cell);
    }
    this.root.append(...added);
  }

  #paintCell(position, end) {
    const cell = this.#cells[position];
    if (cell === undefined) return;
    const look = describe(this.#state, position, end);
    const before = this.#shown[position];
    if (before === look.key) return;
    this.#shown[position] = look.key;
    cell.firstChild.data = look.lead;
    cell.lastChild.textContent = look.word;
    cell.lastChild.className = look.className;
  }
}

function visibleEnd(state) {
  if (state.isEnded) return state.end;
  const isWhole = !state.blockLength || state.blockLength >= state.length;
  if (isWhole) return state.length;
  return Math.min(state.length, Math.max(state.end, state.blockEnd + MASKS_AHEAD));
}

function describe(state, position, end) {
  const cell = state.cells.get(position);
  if (cell === undefined && (state.isEnded || position >= end)) return { key: "", lead: "", word: "", className: "" };
  if (cell === undefined) return describeMask(state, position);
  const word = cell.text.trimStart();
  const tint = Math.round((1 - cell.confidence) * TINTS);
  const className = word === "" ? "" : `word tint-${tint}${cell.isEdit ? " edited" : ""}`;
  const lead = cell.text.slice(0, cell.text.length - word.length);
  return { key: `${className}|${cell.text}`, lead, word, className };
}

function describeMask(state, position) {
  const width = `mask wide-${scatter(position) % MASK_WIDTHS}`;
  const length = state.blockEnd - state.blockStart;
  const isNear = position < state.blockEnd;
  // Where more masks are in progress than may breathe, a scattered share of them does.
  const isBreathing = isNear && (length <= MAX_BREATHING || scatter(position) % length < MAX_BREATHING);
  const beat = isBreathing ? ` breathing beat-${scatter(position) % 4}` : "";
  const className = isNear ? `${width} near${beat}` : width;
  return { key: className, lead: " ", word: "", className };
}

function scatter(position) {
  return Math.imul(position + 1, 2654435761) >>> 16;
}
