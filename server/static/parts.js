// What an answer holds beside its text: what the model thought, and the calls of tools it wrote.
import { el, icon } from "./dom.js";
import { highlight } from "./highlight.js";

const LONGEST_LINE = 60;

// Take over what a delta adds to an answer; chats that were kept by an older page have no parts yet.
export function takeParts(answer, delta) {
  if (delta.reasoning_content) answer.reasoning = (answer.reasoning ?? "") + delta.reasoning_content;
  for (const { index, function: called } of delta.tool_calls ?? []) {
    answer.calls ??= [];
    answer.calls[index] ??= { name: "", arguments: "" };
    answer.calls[index].name += called.name ?? "";
    answer.calls[index].arguments += called.arguments ?? "";
  }
}

export function renderThinking(text) {
  if (!text?.trim()) return [];
  const summary = el("summary", {}, icon("thought"), "Thinking");
  return [el("details", { class: "thinking" }, summary, el("p", { text: text.trim() }))];
}

// `makeCopy(read, label)`: a button that copies.
export function renderCalls(calls, makeCopy) {
  return (calls ?? []).map(({ name, arguments: text }) => {
    const head = el("h3", {}, icon("call"), el("code", { text: name }));
    const copy = makeCopy(() => text, "Copy the arguments");
    return el("section", { class: "call", "aria-label": `Call of ${name}` }, head, renderArguments(text), copy);
  });
}

function renderArguments(text) {
  let values;
  try {
    values = JSON.parse(text);
  } catch {
    return el("p", { class: "fine", text: `The arguments were cut off: ${text}` });
  }
  const rows = Object.entries(values).flatMap(([key, value]) => [el("dt", { text: key }), el("dd", {}, ...renderValue(value))]);
  return rows.length ? el("dl", {}, ...rows) : el("p", { class: "fine", text: "No arguments." });
}

// Text as it is; everything else as JSON, in lines of its own where one is too short.
function renderValue(value) {
  if (typeof value === "string") return [value];
  const line = JSON.stringify(value);
  return [renderJson(line.length > LONGEST_LINE ? JSON.stringify(value, null, 2) : line)];
}

function renderJson(text) {
  return el("code", {}, ...highlight(text, "json"));
}

// A text that is an object or a list in JSON as a block of code, null if it is something else.
export function renderStructured(text) {
  if (!/^\s*[[{]/.test(text)) return null;
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  return el("pre", { class: "wrapped" }, renderJson(text.trim()));
}
