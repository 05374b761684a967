// Draws a canvas: masks as soft blocks, words tinted by how unsure the model was. Only positions
// that changed are touched, at most once per screen refresh, and never for more than about half of
// the page's time.
import { el } from "./dom.js";

// Masks shown beyond the block in progress; a short answer shall not stand before a wall of them.
const MASKS_AHEAD = 40;
// Each breathing mask is a layer of its own for the compositor.
const MAX_BREATHING = 24;
const MASK_WIDTHS = 5;
const TINTS = 10;
// Of a longer canvas, pieces of so many positions break their lines each for itself while it forms:
// a word that comes moves those of its piece, and what is out of sight waits.
const LONGEST_WHOLE = 512;
const PIECE = 128;
// A canvas whose drawing takes longer than this leaves the page as much time as it took.
const CHEAP_MS = 6;

export class CanvasView {
  #cells = [];
  #shown = [];
  #state = null;
  #scheduled = 0;
  #window = [0, 0];
  #restUntil = 0;

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
    if (!this.#scheduled) this.#scheduled = requestAnimationFrame((now) => this.#refresh(now));
  }

  // Thousands of words take a while to break into lines: what came in meanwhile is drawn at once.
  #refresh(now) {
    if (now < this.#restUntil) {
      this.#scheduled = requestAnimationFrame((later) => this.#refresh(later));
      return;
    }
    const start = performance.now();
    this.paint();
    // The layout that would follow anyway, so that it counts.
    void this.root.offsetHeight;
    const end = performance.now();
    this.#restUntil = end - start > CHEAP_MS ? end + (end - start) : 0;
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
    this.root.classList.toggle("in-pieces", !state.isEnded && state.length > LONGEST_WHOLE);
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
    // A cell is a text, the space before its word, and a box. No element around both: the fewer
    // boxes there are, the less it costs to break them into lines.
    while (this.#cells.length < end) {
      const stop = Math.min(end, (Math.floor(this.#cells.length / PIECE) + 1) * PIECE);
      const isNew = this.#cells.length % PIECE === 0;
      const piece = isNew ? el("div", { class: "piece" }) : this.root.lastChild;
      const added = [];
      while (this.#cells.length < stop) {
        const cell = { lead: document.createTextNode(""), box: el("span") };
        this.#cells.push(cell);
        added.push(cell.lead, cell.box);
      }
      piece.append(...added);
      if (isNew) this.root.append(piece);
    }
  }

  #paintCell(position, end) {
    const cell = this.#cells[position];
    if (cell === undefined) return;
    const look = describe(this.#state, position, end);
    const before = this.#shown[position];
    if (before === look.key) return;
    this.#shown[position] = look.key;
    cell.lead.data = look.lead;
    cell.box.textContent = look.word;
    cell.box.className = look.className;
    if (cell.box.title !== look.title) cell.box.title = look.title;
  }
}

// A canvas within the given texts that it fills the holes between, and what its looks mean.
export function makePassage(canvas, { before, after }) {
  const key = "What was given is grey; what was filled in is tinted where the model was unsure.";
  return [el("div", { class: "passage" }, before, canvas, after), el("p", { class: "fine key", text: key })];
}

function visibleEnd(state) {
  if (state.isEnded) return state.end;
  const isWhole = !state.blockLength || state.blockLength >= state.length;
  if (isWhole) return state.length;
  return Math.min(state.length, Math.max(state.end, state.blockEnd + MASKS_AHEAD));
}

function describe(state, position, end) {
  const cell = state.cells.get(position);
  if (cell === undefined && (state.isEnded || position >= end)) return { key: "", lead: "", word: "", className: "", title: "" };
  if (cell === undefined) return describeMask(state, position);
  const word = cell.text.trimStart();
  const isGiven = state.given?.has(position);
  const look = isGiven ? "given" : `tint-${Math.round((1 - cell.confidence) * TINTS)}`;
  const was = state.draft.get(position);
  const isChanged = was !== undefined && was !== cell.text;
  const marks = `${cell.isEdit ? " edited" : ""}${isChanged ? " changed" : ""}`;
  const className = word === "" ? "" : `word ${look}${marks}`;
  const lead = cell.text.slice(0, cell.text.length - word.length);
  const about = isGiven ? "given" : isChanged ? `was “${was.trim()}”` : "";
  const title = word === "" ? "" : about;
  return { key: `${className}|${cell.text}`, lead, word, className, title };
}

function describeMask(state, position) {
  const width = `mask wide-${scatter(position) % MASK_WIDTHS}`;
  const length = state.blockEnd - state.blockStart;
  const isNear = position < state.blockEnd;
  // Where more masks are in progress than may breathe, a scattered share of them does.
  const isBreathing = isNear && (length <= MAX_BREATHING || scatter(position) % length < MAX_BREATHING);
  const beat = isBreathing ? ` breathing beat-${scatter(position) % 4}` : "";
  const className = isNear ? `${width} near${beat}` : width;
  return { key: className, lead: position === 0 ? "" : " ", word: "", className, title: "" };
}

function scatter(position) {
  return Math.imul(position + 1, 2654435761) >>> 16;
}
