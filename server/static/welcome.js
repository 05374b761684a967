// What an empty chat shows: the idea in one line that forms before the reader's eyes, and
// a few questions to begin with.
import { CanvasView } from "./canvas.js";
import { el } from "./dom.js";
import { CanvasState } from "./replay.js";

const WORDS = ["Watch", " a", " text", " take", " shape", "."];
const ORDER = [4, 0, 2, 5, 1, 3];
const PAUSE_MS = 420;
const LEAD = "A diffusion language model does not write from left to right. "
  + "It starts from a canvas of masks and fills it in, surest words first.";
const QUESTIONS = ["Tell me a story about a cat.", "Write about a lost red balloon.", "Hello! Who are you?"];

export function makeWelcome(onAsk) {
  const state = new CanvasState();
  const view = new CanvasView();
  const common = { kind: "frame", block: 0, steps: WORDS.length };
  const empty = { length: WORDS.length, block_length: 0, step: 0, masked: WORDS.length };
  state.apply({ ...common, ...empty, kind: "begin" });
  view.show(state);
  ORDER.forEach((position, index) => {
    const set = [[position, WORDS[position], 1, "unmask"]];
    const event = { ...common, step: index + 1, masked: WORDS.length - index - 1, set };
    const take = () => { state.apply(event); view.show(state); };
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) take();
    else setTimeout(take, PAUSE_MS * (index + 2));
  });
  const about = { type: "button", class: "line-button" };
  const buttons = QUESTIONS.map((text) => el("button", { ...about, text, on: { click: () => onAsk(text) } }));
  return el("div", { class: "welcome" },
    el("div", { class: "hero" }, view.root),
    el("p", { class: "lead", text: LEAD }),
    el("div", { class: "suggestions" }, ...buttons));
}
