// The page of an exported answer: the question, the canvas, the player, the meter.
import { CanvasView, makePassage } from "./canvas.js";
import { el } from "./dom.js";
import { meterParts } from "./meter.js";
import { Player } from "./player.js";
import { Timeline } from "./replay.js";

export function mountReplay(body, { prompt, around, answer }) {
  const timeline = new Timeline(answer.recording, around?.within);
  const view = new CanvasView();
  const player = new Player(timeline, (state) => view.show(state));
  view.show(timeline.seek(timeline.last));
  body.prepend(el("main", { class: "replay" },
    el("h1", { class: "asked-text", text: prompt }),
    ...(around ? makePassage(view.root, around) : [view.root]),
    player.root,
    el("p", { class: "meter" }, ...meterParts(answer).map((text) => el("span", { text }))),
    el("p", { class: "fine", text: "Made with diffusionGPT" }),
  ));
}
