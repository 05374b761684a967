// A chat: turns of one question and one answer (or two side by side), asked, stopped, asked again.
import { AnswerCard, newAnswer } from "./answer.js";
import { ApiError, BrokenStream, Unreachable, streamAnswer } from "./api.js";
import { el, iconButton } from "./dom.js";
import { describeDraft } from "./drafts.js";
import { parseHoles, showHoles } from "./holes.js";
import { drawSeed, policyOf, toRequest } from "./options.js";

const NEAR_BOTTOM = 60;

export class Chat {
  #isFollowing = true;
  #followed = 0;
  #controllers = new Set();
  #cards = new Map();
  #nodes = new Map();

  // `desk`: root, scroller, settings, connection, pair, and onChange(data), onNewChat(text), onRefine(text), openSettings(name).
  constructor(desk) {
    Object.assign(this, desk);
    this.model = null;
    new ResizeObserver(() => this.#follow()).observe(this.root);
    this.scroller.addEventListener("scroll", () => this.#noteScroll(), { passive: true });
    this.open({ id: crypto.randomUUID?.() ?? drawSeed(), title: "", turns: [] });
  }

  get isRunning() {
    return this.#controllers.size > 0;
  }

  get isEmpty() {
    return this.data.turns.length === 0;
  }

  open(data) {
    this.stop();
    this.data = data;
    this.#cards.clear();
    this.#nodes.clear();
    this.root.replaceChildren();
    for (const turn of data.turns) {
      // A page that was closed in the middle of an answer comes back to what it had.
      for (const answer of turn.answers) if (answer.status === "running") answer.status = "lost";
      this.#place(turn);
    }
    this.#isFollowing = true;
    this.#follow();
  }

  // `segments`: the text is no question but has holes to fill; `draft`: it is to be refined so.
  send(text, { segments = null, draft = null } = {}) {
    const turn = { prompt: text, segments, draft, answers: [], chosen: 0 };
    this.data.turns.push(turn);
    this.data.title ||= text.slice(0, 80);
    this.#ask(turn, this.#variants());
  }

  stop() {
    for (const controller of this.#controllers) controller.abort();
  }

  // One answer with the settings as they are, or two that differ in what the pair says.
  #variants() {
    const { values } = this.settings;
    if (!this.pair.isOn) return [{ ...values }];
    const seed = values.seed || drawSeed();
    return this.pair.variants.map((variant) => ({ ...values, ...variant, seed }));
  }

  #ask(turn, variants) {
    turn.answers = variants.map((values) => newAnswer(values, policyOf(values, this.model), values.seed ?? ""));
    this.#place(turn);
    this.#isFollowing = true;
    this.#follow();
    const runs = turn.answers.map((answer) => this.#run(answer, turn));
    // By the time they end, another chat may be open; what is kept is the one they belong to.
    const { data } = this;
    this.onChange(data);
    Promise.all(runs).then(() => this.onChange(data));
  }

  async #run(answer, turn) {
    const controller = new AbortController();
    const card = this.#cards.get(answer);
    this.#controllers.add(controller);
    try {
      await this.connection.withKey(() => this.#read(answer, card, turn, controller.signal));
      card.finish("done");
    } catch (error) {
      this.connection.report(error);
      card.finish(statusOf(error), { message: sentence(error), param: error.param, code: error.code });
    } finally {
      this.#controllers.delete(controller);
    }
  }

  async #read(answer, card, turn, signal) {
    const request = toRequest(answer.values, this.model);
    const { path, prompt, options } = this.#asked(turn);
    const body = { model: this.model.id, stream: true, ...request, ...prompt };
    body.diffusion = { ...request.diffusion, ...options, frames: "delta" };
    const started = performance.now();
    const onHeaders = (headers) => { answer.seed = headers.get("x-diffusiongpt-seed") ?? answer.seed; };
    for await (const chunk of streamAnswer(path, body, { seed: answer.seed, signal, onHeaders })) {
      card.take(chunk, performance.now() - started);
    }
  }

  // Where a turn is sent and what is asked there. Holes and drafts have their own lengths.
  #asked(turn) {
    const { prompt: input, segments, draft } = turn;
    const chatOnly = { tools: undefined, max_tokens: undefined };
    if (segments) return { path: "v1/infill", prompt: { segments, ...chatOnly } };
    if (draft) {
      const { instruction, ...options } = draft;
      const usage = { stream_options: { include_usage: true }, ...chatOnly };
      return { path: "v1/edits", prompt: { input, instruction, ...usage }, options };
    }
    return { path: "v1/chat/completions", prompt: { messages: this.#messagesUpTo(turn) } };
  }

  #messagesUpTo(turn) {
    const { system } = this.settings.values;
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const before of this.data.turns) {
      if (before === turn) break;
      if (before.segments || before.draft) continue;
      const { content } = before.answers[before.chosen];
      // A question that got no answer is no part of what the model is told.
      if (content) messages.push({ role: "user", content: before.prompt }, { role: "assistant", content });
    }
    return [...messages, { role: "user", content: turn.prompt }];
  }

  #again(turn) {
    const isPair = turn.answers.length > 1;
    const seed = this.settings.values.seed || drawSeed();
    const variants = isPair ? turn.answers.map(({ values }) => ({ ...values, seed })) : [{ ...this.settings.values }];
    this.#ask(turn, variants);
  }

  #editAndResend(turn, text) {
    const after = this.data.turns.splice(this.data.turns.indexOf(turn) + 1);
    for (const dropped of after) this.#nodes.get(dropped).remove();
    turn.prompt = text;
    turn.segments = turn.segments && parseHoles(text);
    this.#ask(turn, this.#variants());
  }

  // Put a turn on the page, in the place of what it was before.
  #place(turn) {
    const cards = turn.answers.map((answer, index) => this.#makeCard(turn, answer, index));
    const isPair = cards.length > 1;
    const answers = el("div", { class: isPair ? "answers pair" : "answers" }, ...cards.map((card) => card.root));
    const node = el("article", { class: isPair ? "turn wide" : "turn" }, this.#makeQuestion(turn), answers);
    const before = this.#nodes.get(turn);
    if (before) before.replaceWith(node);
    else this.root.append(node);
    this.#nodes.set(turn, node);
    if (isPair) this.#markChosen(turn);
  }

  #makeCard(turn, answer, index) {
    const isPair = turn.answers.length > 1;
    const card = new AnswerCard(answer, turn, {
      regenerate: () => this.isRunning || this.#again(turn),
      keepSeed: (seed) => this.settings.set("seed", seed),
      refine: this.onRefine,
      askAlone: () => this.onNewChat(turn.prompt),
      openSettings: this.openSettings,
      choose: isPair ? () => this.#choose(turn, index) : null,
    }, isPair ? labelOf(answer, index) : null);
    this.#cards.set(answer, card);
    return card;
  }

  #choose(turn, index) {
    turn.chosen = index;
    this.#markChosen(turn);
    this.onChange(this.data);
  }

  #markChosen(turn) {
    turn.answers.forEach((answer, index) => this.#cards.get(answer).root.classList.toggle("chosen", index === turn.chosen));
  }

  #makeQuestion(turn) {
    const shown = turn.segments ? showHoles(turn.segments) : [turn.prompt];
    if (turn.draft) shown.push(el("p", { class: "fine", text: describeDraft(turn.draft) }));
    const text = el("div", { class: "asked-text", tabindex: turn.prompt.length > 1500 ? "0" : null }, ...shown);
    const edit = iconButton("pencil", "Edit and send again", () => this.isRunning || question.replaceWith(this.#makeEditor(turn, question)));
    const question = el("div", { class: "asked", role: "group", "aria-label": "Question" }, edit, text);
    return question;
  }

  #makeEditor(turn, question) {
    const isFine = () => area.setCustomValidity("");
    const area = el("textarea", { "aria-label": "Edit the question", rows: 3, on: { input: isFine } });
    area.value = turn.prompt;
    const cancel = () => editor.replaceWith(question);
    const submit = (event) => {
      event.preventDefault();
      const text = area.value.trim();
      const isHoleless = turn.segments && !parseHoles(text);
      area.setCustomValidity(isHoleless ? "There is no hole to fill." : "");
      if (area.reportValidity() && text && !this.isRunning) this.#editAndResend(turn, text);
    };
    const editor = el("form", { class: "editor", on: { submit } }, area, el("div", { class: "row-end" },
      el("button", { type: "button", class: "line-button", text: "Cancel", on: { click: cancel } }),
      el("button", { type: "submit", class: "solid-button", text: "Send" })));
    requestAnimationFrame(() => area.focus());
    return editor;
  }

  // Keep the newest text in view while the page grows, unless the reader has scrolled away. A
  // canvas that fills all over is read from its top.
  #follow() {
    const turn = this.data.turns.at(-1);
    if (!this.#isFollowing || !turn) return;
    const isWhole = turn.answers.some((answer) => this.#cards.get(answer).isWhole);
    const top = isWhole ? this.#nodes.get(turn).offsetTop - this.scroller.offsetTop - 12 : Infinity;
    this.scroller.scrollTop = Math.min(this.scroller.scrollHeight, top);
    this.#followed = this.scroller.scrollTop;
  }

  #noteScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    if (scrollTop < this.#followed - 2) this.#isFollowing = false;
    if (scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM) this.#isFollowing = true;
  }
}

function labelOf({ values, policy }, index) {
  const steps = values.steps ? ` · ${values.steps} steps` : "";
  return `${"AB"[index]} · ${policy}${steps}`;
}

function statusOf(error) {
  if (error.name === "AbortError") return "stopped";
  if (error instanceof BrokenStream) return "broken";
  if (error instanceof ApiError || error instanceof Unreachable) return "refused";
  throw error;
}

// The server's sentences begin small and end without a stop.
function sentence(error) {
  if (error.name === "AbortError") return "";
  const text = error.message;
  return `${text.slice(0, 1).toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? "" : "."}`;
}
