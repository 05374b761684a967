// The page's wiring: finds its parts, connects to the server, listens to keys.
import { readModels } from "./api.js";
import { Chat } from "./chat.js";
import { Connection } from "./connection.js";
import { DraftDesk } from "./drafts.js";
import { el, icon, iconButton, setIcon } from "./dom.js";
import { History } from "./history.js";
import { HoleMaker, parseHoles } from "./holes.js";
import { Pair } from "./pair.js";
import { Settings } from "./settings.js";
import { drawSeed, policyOf, takesWholeCanvas } from "./options.js";
import { applyTheme, nextTheme } from "./theme.js";
import { makeWelcome } from "./welcome.js";

const MODEL = "diffusiongpt-model";
const part = (id) => document.getElementById(id);
const question = part("question");
const send = part("send");
const history = new History();
const connection = new Connection(part("notice"), part("key"), connect);
const pair = new Pair(part("pair"));
const holes = new HoleMaker(part("holes"), question);
const drafts = new DraftDesk(part("draft"), question);
const settings = new Settings(part("settings"), { onClose: () => openSettings(false), onChange: describeSettings });
const chat = new Chat({
  root: part("turns"), scroller: part("scroller"), settings, connection, pair,
  onChange: (data) => { save(data); refresh(); },
  onNewChat: (text) => { newChat(); setMode(null); ask(text); },
  onRefine: (text) => { setMode(drafts); write(text); },
  openSettings: (name) => { openSettings(true); settings.point(name); },
});

async function connect() {
  try {
    const models = await connection.withKey(readModels);
    const kept = localStorage.getItem(MODEL);
    useModel(models.find(({ id }) => id === kept) ?? models[0], models);
  } catch (error) {
    connection.report(error);
    part("hint").textContent = error.message;
  }
}

function useModel(model, models) {
  chat.model = model;
  showModel(model, models);
  settings.show(model);
  pair.show(model);
  // Nothing after a hole is seen by a model that writes block by block, and by no other length.
  part("fill").hidden = !takesWholeCanvas(model);
  if (!takesWholeCanvas(model) && holes.isOn) setMode(null);
  refresh();
}

// The name of the model, or a choice where several are served.
function makeNames({ id }, models) {
  if (models.length === 1) return el("strong", { text: id });
  const choose = ({ target }) => {
    localStorage.setItem(MODEL, target.value);
    useModel(models.find((each) => each.id === target.value), models);
  };
  const options = models.map((each) => el("option", { text: each.id }));
  const names = el("select", { "aria-label": "Model", on: { change: choose } }, ...options);
  names.value = id;
  return names;
}

function showModel(model, models) {
  const { diffusion } = model;
  const millions = diffusion.num_parameters / 1e6;
  const size = millions >= 1000 ? `${(millions / 1000).toFixed(1)} B` : millions >= 1 ? `${millions.toFixed(1)} M` : "";
  const blocks = diffusion.block_length ? `blocks of ${diffusion.block_length}` : "whole canvas";
  const about = [size && `${size} parameters`, blocks].filter(Boolean).join(" · ");
  part("model").replaceChildren(makeNames(model, models), el("span", { text: about }));
}

function ask(text) {
  if (!text || chat.isRunning) return false;
  if (!chat.model) {
    // Nobody answered, or a key was wanted and not given: try again, and keep the question.
    connect();
    return false;
  }
  if (settings.complaint) {
    part("hint").textContent = settings.complaint;
    return false;
  }
  const segments = holes.isOn ? parseHoles(text) : null;
  if (holes.isOn && !segments) {
    part("hint").textContent = "There is no hole to fill: select words and make one.";
    return false;
  }
  chat.send(text, { segments, draft: drafts.isOn ? drafts.draft : null });
  return true;
}

function refresh() {
  setIcon(send, chat.isRunning ? "stop" : "send", chat.isRunning ? "Stop" : "Send");
  send.classList.toggle("is-stop", chat.isRunning);
  const isEmpty = chat.isEmpty;
  const welcome = document.querySelector(".welcome");
  if (isEmpty && !welcome) part("scroller").append(makeWelcome((text) => { setMode(null); ask(text); }));
  if (!isEmpty) welcome?.remove();
  describeSettings();
}

// One line below the message box: what differs from the model's own settings.
function describeSettings() {
  if (!chat.model) return;
  const { policy, steps, seed, temperature, max_tokens: length } = settings.values;
  const parts = [pair.isOn ? null : `policy ${policyOf({ policy }, chat.model)}`];
  if (steps && !pair.isOn) parts.push(`${steps} steps`);
  if (length) parts.push(`${length} tokens`);
  if (temperature) parts.push(`temperature ${temperature}`);
  if (seed) parts.push(`seed ${seed}`);
  part("hint").textContent = parts.filter(Boolean).join(" · ");
}

async function save(data) {
  data.updated = Date.now();
  try {
    await history.save(data);
    await listChats();
  } catch (error) {
    part("chat-list-note").textContent = `This browser keeps no chats: ${error.message}`;
  }
}

async function listChats() {
  const chats = await history.list();
  part("chat-list").replaceChildren(...chats.map(makeEntry));
}

function makeEntry({ id, title }) {
  const current = id === chat.data.id ? "true" : null;
  const about = { type: "button", class: "entry", "aria-current": current };
  const open = el("button", { ...about, text: title, on: { click: () => openChat(id) } });
  const remove = iconButton("trash", `Delete the chat “${title}”`, async () => {
    await history.remove(id);
    if (id === chat.data.id) newChat();
    await listChats();
  });
  return el("li", {}, open, remove);
}

async function openChat(id) {
  chat.open(await history.read(id));
  openChats(false);
  refresh();
  await listChats();
}

function newChat() {
  chat.open({ id: drawSeed() + Date.now(), title: "", turns: [] });
  openChats(false);
  refresh();
  listChats().catch(() => {});
  question.focus();
}

function openSettings(isOpen) {
  part("settings").hidden = !isOpen;
  part("open-settings").setAttribute("aria-expanded", String(isOpen));
  document.body.classList.toggle("has-settings", isOpen);
  if (isOpen) part("settings").querySelector("button, select, input")?.focus();
  else part("open-settings").focus();
  shade();
}

function openChats(isOpen) {
  document.body.classList.toggle("has-chats", isOpen);
  part("open-chats").setAttribute("aria-expanded", String(isOpen));
  shade();
}

// On a narrow page an open side lies over the chat.
function shade() {
  part("shade").hidden = !document.body.matches(".has-settings, .has-chats");
}

function fitQuestion() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

function togglePair() {
  pair.toggle(!pair.isOn);
  part("compare").setAttribute("aria-pressed", String(pair.isOn));
  describeSettings();
}

// What the message box holds: a question (null), a text with holes, or a draft.
function setMode(mode) {
  for (const [each, button] of [[holes, "fill"], [drafts, "edit"]]) {
    if (each !== mode) each.toggle(false);
    part(button).setAttribute("aria-pressed", String(each === mode));
  }
  mode?.toggle(true);
}

function write(text) {
  question.value = text;
  fitQuestion();
  question.focus();
}

function showTheme(theme) {
  setIcon(part("theme"), { system: "auto", light: "sun", dark: "moon" }[theme], `Theme: ${theme}`);
}

const SHORTCUTS = {
  "/": () => question.focus(),
  ",": () => openSettings(part("settings").hidden),
};

function onKey(event) {
  if (event.key === "Escape" && !part("key").open) return escape();
  const isTyping = event.target.matches("input, textarea, select");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  if (SHORTCUTS[event.key]) {
    event.preventDefault();
    SHORTCUTS[event.key]();
  }
}

function escape() {
  if (!part("settings").hidden) openSettings(false);
  else if (document.body.matches(".has-chats")) openChats(false);
  else chat.stop();
}

part("open-chats").append(icon("menu"));
part("close-chats").append(icon("close"));
part("fill").append(icon("hole"), el("span", { text: "Fill holes" }));
part("edit").append(icon("draft"), el("span", { text: "Refine" }));
part("compare").append(icon("columns"), el("span", { text: "Side by side" }));
part("open-settings").append(icon("sliders"), el("span", { text: "Settings" }));
part("new-chat").prepend(icon("plus"));
part("open-chats").addEventListener("click", () => openChats(!document.body.matches(".has-chats")));
part("close-chats").addEventListener("click", () => openChats(false));
part("new-chat").addEventListener("click", newChat);
part("compare").addEventListener("click", togglePair);
part("open-settings").addEventListener("click", () => openSettings(part("settings").hidden));
part("fill").addEventListener("click", () => setMode(holes.isOn ? null : holes));
part("edit").addEventListener("click", () => setMode(drafts.isOn ? null : drafts));
part("theme").addEventListener("click", () => showTheme(nextTheme()));
part("shade").addEventListener("click", () => { openChats(false); if (!part("settings").hidden) openSettings(false); });
document.addEventListener("keydown", onKey);
question.addEventListener("input", fitQuestion);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!chat.isRunning) part("composer").requestSubmit();
});
part("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (chat.isRunning) chat.stop();
  else if (ask(question.value.trim())) {
    question.value = "";
    fitQuestion();
  }
});

showTheme(applyTheme());
refresh();
// Ready to be typed into; on a phone the keyboard would cover half of the page.
if (matchMedia("(pointer: fine)").matches) question.focus();
connect();
listChats().catch((error) => { part("chat-list-note").textContent = `This browser keeps no chats: ${error.message}`; });
