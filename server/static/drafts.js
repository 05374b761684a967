// A draft to refine: how much of it is redone, which words, and what for.
import { el } from "./dom.js";

const STORE = "diffusiongpt-draft";
const STANDARD = { strength: "50", pick: "doubtful", instruction: "" };
const PICKS = { doubtful: "what it doubts", random: "random words" };

// The line above the message box while a draft is pasted.
export class DraftDesk {
  constructor(root, area) {
    this.root = root;
    this.area = area;
    this.isOn = false;
    this.values = load();
    const share = el("output", { class: "fine share", text: `${this.values.strength} %` });
    const strength = this.#field("input", "strength", { type: "range", min: 0, max: 100, step: 5, "aria-label": "Strength: share of the draft that is written anew" });
    strength.addEventListener("input", () => { share.textContent = `${strength.value} %`; });
    const pick = this.#field("select", "pick", { "aria-label": "Which words are written anew" },
      ...Object.entries(PICKS).map(([value, text]) => el("option", { value, text })));
    const instruction = this.#field("input", "instruction", { type: "text", autocomplete: "off", "aria-label": "Instruction", placeholder: "Instruction (optional)" });
    root.replaceChildren(
      el("label", { class: "strength" }, el("span", { class: "fine", text: "Write anew" }), strength, share),
      pick, instruction);
  }

  // What a request takes of it.
  get draft() {
    const { strength, pick, instruction } = this.values;
    return { strength: Number(strength) / 100, pick, instruction: instruction.trim() };
  }

  toggle(isOn) {
    this.isOn = isOn;
    this.root.hidden = !isOn;
    this.area.placeholder = isOn ? "Paste a draft…" : "Ask for a story…";
  }

  #field(tag, name, properties, ...children) {
    const keep = ({ target }) => {
      this.values[name] = target.value;
      localStorage.setItem(STORE, JSON.stringify(this.values));
    };
    const field = el(tag, { ...properties, on: { input: keep } }, ...children);
    field.value = this.values[name];
    return field;
  }
}

// How a draft was refined, in a line.
export function describeDraft({ strength, pick, instruction }) {
  const share = `${Math.round(strength * 100)} % anew, ${PICKS[pick]}`;
  return instruction ? `${instruction} · ${share}` : share;
}

function load() {
  try {
    return { ...STANDARD, ...JSON.parse(localStorage.getItem(STORE) ?? "{}") };
  } catch {
    return { ...STANDARD };
  }
}
