// A text with holes: written as ⟦8⟧ for eight positions to fill, or ⟦auto⟧ for as many as are
// likeliest, or made of selected words.
import { el, icon } from "./dom.js";

// A space before a hole is the hole's: words begin with theirs in the tokens of most models, and
// after a space of its own a model would write half a word.
const HOLE = / ?⟦\s*(\d{1,5}|auto)\s*⟧/;
const LETTERS_PER_TOKEN = 4;
const NEW_LENGTH = 8;

// Texts and { mask: length or "auto" }, in order; null without a hole.
export function parseHoles(text) {
  const segments = text.split(HOLE).map((part, index) => (index % 2 ? { mask: part === "auto" ? part : Number(part) } : part));
  return segments.length < 2 ? null : segments.filter((part) => part !== "");
}

// What stands before the first hole, from there to the end of the last one, and after it.
export function aroundHoles(segments) {
  const isHole = (part) => typeof part !== "string";
  const first = segments.findIndex(isHole);
  const last = segments.findLastIndex(isHole);
  const [before, after] = [segments.slice(0, first), segments.slice(last + 1)];
  return { before: before.join(""), within: segments.slice(first, last + 1), after: after.join("") };
}

// The same on the page, holes as small blocks that tell their length.
export function showHoles(segments) {
  return segments.map((part) => (typeof part === "string" ? part : el("span", { class: "hole", text: `${part.mask}` })));
}

// The line above the message box while a text with holes is written.
export class HoleMaker {
  constructor(root, area) {
    this.root = root;
    this.area = area;
    this.isOn = false;
    root.replaceChildren(
      makeButton("Make a hole", () => this.#dig(false)),
      makeButton("Find its length", () => this.#dig(true)),
      el("p", { class: "fine", text: "Select words to fill anew, or write ⟦8⟧ for a hole of 8 positions, ⟦auto⟧ for one that finds its length." }),
    );
  }

  toggle(isOn) {
    this.isOn = isOn;
    this.root.hidden = !isOn;
    this.area.placeholder = isOn ? "A text with a hole…" : "Ask for a story…";
  }

  #dig(isAutomatic) {
    const { selectionStart: start, selectionEnd: end } = this.area;
    const length = Math.ceil((end - start) / LETTERS_PER_TOKEN) || NEW_LENGTH;
    this.area.setRangeText(`⟦${isAutomatic ? "auto" : length}⟧`, start, end, "end");
    this.area.focus();
    this.area.dispatchEvent(new Event("input"));
  }
}

function makeButton(text, click) {
  return el("button", { type: "button", class: "line-button", on: { click } }, icon("hole"), text);
}
