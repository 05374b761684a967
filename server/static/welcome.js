// What an empty chat shows: the idea in one line that forms before the reader's eyes, and
// a few questions to begin with.
import { CanvasView } from "./canvas.js";
import { el } from "./dom.js";
import { CanvasState } from "./replay.js";

const WORDS = ["Watch", " a", " text", " take", " shape", "."];
const ORDER = [4, 0, 2, 5, 1, 3];
const PAUSE_MS = 420;
const QUESTIONS = ["Tell me a story about a cat.", "Write about a lost red balloon.", "Hello! Who are you?"];

export function makeWelcome(onAsk) {
  const state = new CanvasState();
  const view = new CanvasView();
  const common = { kind: "frame", block: 0, steps: WORDS.length };
  state.apply({ ...common, kind: "begin", length: WORDS.length, block_length: 0, step: 0, masked: WORDS.length });
  view.show(state);
  ORDER.forEach((position, index) => {
    const confidence = 0.35 + 0.1 * index;
    const event = { ...common, step: index + 1, masked: WORDS.length - index - 1, set: [[position, WORDS[position], confidence, "unmask"]] };
    const take = () => { state.apply(event); view.show(state); };
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) take();
    else setTimeout(take, PAUSE_MS * (index + 2));
  });
  const buttons = QUESTIONS.map((text) => el("button", { type: "button", class: "line-button", text, on: { click: () => onAsk(text) } }));
  return el("div", { class: "welcome" },
    el("div", { class: "hero" }, view.root),
    el("p", { class: "lead", text: "A diffusion language model does not write from left to right. It starts from a canvas of masks and fills it in, surest words first." }),
    el("div", { class: "suggestions" }, ...buttons));
}
