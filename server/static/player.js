// Plays an answer again: a button, a scrubber over its steps, a speed.
import { el, iconButton, setIcon } from "./dom.js";

const SECONDS_PER_REPLAY = 7;
const MOST_PER_SECOND = 60;
const LEAST_PER_SECOND = 5;
const SPEEDS = ["0.25", "0.5", "1", "2", "4"];

export class Player {
  #playing = 0;
  #moment;

  // `onMove(state, isAtEnd)` is called with the canvas at every moment that is shown.
  constructor(timeline, onMove) {
    this.timeline = timeline;
    this.onMove = onMove;
    this.#moment = timeline.last;
    this.button = iconButton("play", "Play this answer again", () => this.toggle(), { class: "play" });
    this.range = el("input", {
      type: "range", min: 0, max: timeline.last, value: timeline.last, "aria-label": "Step",
      on: { input: () => this.#scrub() },
    });
    this.label = el("span", { class: "player-step" });
    this.speed = el("select", { class: "speed", "aria-label": "Speed" }, ...SPEEDS.map(
      (speed) => el("option", { value: speed, text: `${speed}×`, selected: speed === "1" }),
    ));
    this.root = el("div", { class: "player" }, this.button, this.range, this.label, this.speed);
    this.#describe();
  }

  toggle() {
    if (this.#playing) this.pause();
    else this.play();
  }

  play() {
    if (this.#moment >= this.timeline.last) this.seek(0);
    setIcon(this.button, "pause", "Pause");
    let before = performance.now();
    let exact = this.#moment;
    const advance = (now) => {
      exact += ((now - before) / 1000) * this.#perSecond();
      before = now;
      if (Math.floor(exact) > this.#moment) this.seek(Math.floor(exact));
      if (this.#moment >= this.timeline.last) this.pause();
      else this.#playing = requestAnimationFrame(advance);
    };
    this.#playing = requestAnimationFrame(advance);
  }

  pause() {
    cancelAnimationFrame(this.#playing);
    this.#playing = 0;
    setIcon(this.button, "play", "Play this answer again");
  }

  seek(moment) {
    this.#moment = Math.max(0, Math.min(moment, this.timeline.last));
    this.range.value = this.#moment;
    const state = this.timeline.seek(this.#moment);
    this.#describe();
    this.onMove(state, this.#moment === this.timeline.last);
  }

  #scrub() {
    this.pause();
    this.seek(Number(this.range.value));
  }

  #perSecond() {
    const even = this.timeline.last / SECONDS_PER_REPLAY;
    const calm = Math.max(LEAST_PER_SECOND, Math.min(even, MOST_PER_SECOND));
    return calm * Number(this.speed.value);
  }

  #describe() {
    const text = `${this.#moment} / ${this.timeline.last}`;
    this.label.textContent = text;
    this.range.setAttribute("aria-valuetext", `step ${this.#moment} of ${this.timeline.last}`);
    // The filled part of the track is drawn from this.
    const share = this.timeline.last ? this.#moment / this.timeline.last : 1;
    this.range.style.setProperty("--played", `${(share * 100).toFixed(2)}%`);
  }
}
