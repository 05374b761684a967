// One answer on the page: its canvas while it forms, then its text, its meter and its player.
import { CanvasView, makePassage } from "./canvas.js";
import { el, icon, iconButton, setIcon } from "./dom.js";
import { exportReplay } from "./export.js";
import { aroundHoles } from "./holes.js";
import { renderMarkdown } from "./markdown.js";
import { meterParts, progressParts } from "./meter.js";
import { renderCalls, renderStructured, renderThinking, takeParts } from "./parts.js";
import { Player } from "./player.js";
import { CanvasState, Timeline, newRecording, record } from "./replay.js";

const COLOURS = "diffusiongpt-colours";
const ABOUT_STATUS = {
  stopped: "You stopped it here.",
  broken: "What had settled by then is kept.",
  lost: "This answer was still being written when the page was closed.",
};

export function newAnswer(values, policy, seed) {
  const nothingYet = { content: "", reasoning: "", calls: [], status: "running", error: null, summary: null, timings: null };
  return { values, policy, seed, recording: newRecording(), ...nothingYet };
}

export class AnswerCard {
  #state;
  #player = null;

  // `actions`: regenerate(), keepSeed(seed), askAlone(), refine(text), openSettings(name), and choose() where two stand side by side.
  constructor(answer, { prompt, segments, draft }, actions, label = null) {
    this.answer = answer;
    this.prompt = prompt;
    this.around = segments ? aroundHoles(segments) : null;
    this.#state = new CanvasState(this.around?.within);
    // What became of a given text is read off its canvas.
    this.staysCanvas = Boolean(segments || draft);
    this.actions = actions;
    this.view = new CanvasView({ onPaint: () => this.#afterPaint() });
    this.prose = el("div", { class: "prose" });
    this.told = el("div", { class: "told" });
    this.settled = el("div", { class: "unseen settled", "aria-live": "polite" });
    this.meter = el("p", { class: "meter" });
    this.trouble = el("div", { class: "trouble", role: "alert" });
    this.tools = el("div", { class: "tools" });
    const head = label ? el("h2", { class: "answer-label", text: label }) : null;
    const canvas = this.around ? makePassage(this.view.root, this.around) : [this.view.root];
    const body = el("div", { class: "answer-body" }, ...canvas, this.told, this.settled);
    const parts = [head, body, this.trouble, this.tools, this.meter];
    this.root = el("section", { class: "answer", "aria-label": label ?? "Answer" }, ...parts);
    if (answer.status === "running") this.#showRunning();
    else this.#showDone();
  }

  get isWhole() {
    const { blockLength, length } = this.#state;
    return !blockLength || blockLength >= length;
  }

  // Take over one chunk of the stream.
  take(chunk, milliseconds) {
    if (chunk.diffusion?.v) {
      record(this.answer.recording, chunk.diffusion, milliseconds);
      this.#state.apply(chunk.diffusion);
      this.view.show(this.#state);
    }
    if (chunk.diffusion?.kind === "end") this.answer.summary = chunk.diffusion;
    if (chunk.usage) this.answer.usage = chunk.usage;
    if (chunk.timings) this.answer.timings = chunk.timings;
    const choice = chunk.choices?.[0];
    takeParts(this.answer, choice?.delta ?? {});
    const content = choice?.delta?.content ?? choice?.text;
    if (content) this.#settle(content);
  }

  finish(status, error = null) {
    this.answer.status = status;
    this.answer.error = error;
    this.#showDone();
  }

  // Only settled text is read aloud; the canvas changes too fast for that.
  #settle(content) {
    this.answer.content += content;
    this.settled.append(content);
  }

  #showRunning() {
    this.root.classList.add("running");
    this.root.setAttribute("aria-busy", "true");
    this.view.root.setAttribute("aria-hidden", "true");
    this.view.show(this.#state);
  }

  #afterPaint() {
    if (this.answer.status === "running") this.meter.replaceChildren(...spans(progressParts(this.#state)));
  }

  #showDone() {
    const { answer } = this;
    this.root.classList.remove("running");
    this.root.removeAttribute("aria-busy");
    this.prose.replaceChildren(renderStructured(this.#text) ?? renderMarkdown(this.#text));
    for (const block of this.prose.querySelectorAll("pre")) addCopy(block);
    this.told.replaceChildren(...renderThinking(answer.reasoning), this.prose, ...renderCalls(answer.calls, copyButton));
    // The text itself is there to be read now.
    this.settled.replaceChildren();
    this.meter.replaceChildren(...spans(meterParts(answer)));
    this.#showTrouble();
    if (answer.recording.events.length) this.#makePlayer();
    this.tools.replaceChildren(...this.#makeTools());
    // A canvas that was never filled is shown as it was left, masks and all.
    const wantsCanvas = wantsColours() || answer.status !== "done";
    this.view.root.removeAttribute("aria-hidden");
    this.#look((wantsCanvas || this.staysCanvas) && this.#player !== null);
  }

  // An answer's content, or the whole text whose holes were filled.
  get #text() {
    const { before, after } = this.around ?? { before: "", after: "" };
    return before + this.answer.content + after;
  }

  #showTrouble() {
    const { status, error } = this.answer;
    const text = [error?.message, ABOUT_STATUS[status]].filter(Boolean).join(" ");
    this.trouble.replaceChildren(...(text ? [el("p", { text })] : []));
    if (text && status !== "done") this.trouble.append(...this.#wayOn(status, error));
  }

  #wayOn(status, error) {
    const button = (text, action) => el("button", { type: "button", class: "line-button", text, on: { click: action } });
    const ways = [button(status === "stopped" ? "Start over" : "Try again", this.actions.regenerate)];
    if (error?.code === "context_length_exceeded") ways.push(button("Ask it in a new chat", this.actions.askAlone));
    if (error?.param) ways.push(button("Open settings", () => this.actions.openSettings(error.param)));
    return ways;
  }

  #makePlayer() {
    const timeline = new Timeline(this.answer.recording, this.around?.within);
    if (timeline.last < 1) return;
    this.#player = new Player(timeline, (state, isAtEnd) => this.#showMoment(state, isAtEnd));
    this.view.show(timeline.seek(timeline.last));
    this.tools.before(this.#player.root);
  }

  #showMoment(state, isAtEnd) {
    this.view.show(state);
    const isOver = isAtEnd && !this.staysCanvas && !wantsColours() && this.answer.status === "done";
    this.#look(!isOver);
    this.meter.replaceChildren(...spans(isAtEnd ? meterParts(this.answer) : progressParts(state)));
  }

  #look(showsCanvas) {
    this.root.classList.toggle("shows-canvas", showsCanvas);
  }

  #makeTools() {
    const { answer, actions } = this;
    const tools = actions.choose ? [this.#makeChoice()] : [];
    const add = (...tool) => tools.push(iconButton(...tool));
    if (answer.content) tools.push(copyButton(() => this.#text, "Copy the answer"));
    if (answer.status === "done") add("again", "Write it again", actions.regenerate);
    if (this.#player && !this.staysCanvas) {
      const isOn = { "aria-pressed": String(wantsColours()) };
      add("colours", "Show how sure each word was", () => this.#toggleColours(), isOn);
    }
    if (answer.content && answer.status === "done") add("draft", "Refine this text", () => actions.refine(this.#text));
    if (this.#player) add("download", "Save as a page that replays it", () => this.#export());
    if (answer.summary) add("pin", "Keep this seed", () => actions.keepSeed(answer.seed));
    return tools;
  }

  #makeChoice() {
    const about = { type: "button", class: "text-button choose", on: { click: this.actions.choose } };
    return el("button", about, icon("check"), "Go on with this");
  }

  // The page that is saved is made of files of this one, which a server that is gone cannot send.
  async #export() {
    try {
      await exportReplay(this.answer, this.prompt, this.around);
    } catch {
      this.trouble.replaceChildren(el("p", { text: "The page was not saved: the server does not answer." }));
    }
  }

  #toggleColours() {
    const wants = !this.root.classList.contains("shows-canvas");
    localStorage.setItem(COLOURS, String(wants));
    this.#look(wants);
    this.tools.querySelector(".icon-colours").parentElement.setAttribute("aria-pressed", String(wants));
  }
}

function wantsColours() {
  return localStorage.getItem(COLOURS) === "true";
}

function spans(parts) {
  return parts.map((text) => el("span", { text }));
}

function addCopy(block) {
  block.append(copyButton(() => block.querySelector("code").textContent, "Copy the code"));
}

function copyButton(read, label) {
  const button = iconButton("copy", label, async () => {
    await copy(read());
    setIcon(button, "check", "Copied");
    setTimeout(() => setIcon(button, "copy", label), 1500);
  });
  return button;
}

// Pages that come over plain HTTP from another machine have no clipboard of their own.
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = el("textarea", { class: "unseen" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
