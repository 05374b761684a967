// The settings drawer. An empty field leaves the choice to the model; what the model refuses is
// disabled and says why.
import { el, iconButton } from "./dom.js";
import { OPTIONS, POLICIES, complaint, defaultOf, policyOf, refusal } from "./options.js";

const STORE = "diffusiongpt-settings";

export class Settings {
  #fields = new Map();

  constructor(root, { onClose, onChange }) {
    this.root = root;
    this.onClose = onClose;
    this.onChange = onChange;
    this.model = null;
    this.values = load();
  }

  show(model) {
    this.model = model;
    this.#fields.clear();
    const groups = [...new Set(OPTIONS.map((option) => option.group))];
    this.root.replaceChildren(
      el("div", { class: "side-head" },
        el("h2", { text: "Settings" }),
        iconButton("close", "Close settings", () => this.onClose())),
      el("p", { class: "fine", text: "Empty fields leave the choice to the model." }),
      ...groups.map((group) => this.#group(group)),
      el("button", { type: "button", class: "line-button", text: "Back to the model's own", on: { click: () => this.#reset() } }),
      keyHelp(),
    );
    this.#refresh();
  }

  // Focus the field that a refusal named, or named a part of.
  point(path) {
    const name = path.split(".").find((part) => this.#fields.has(part));
    this.#fields.get(name)?.input.focus();
  }

  set(name, value) {
    this.values[name] = value;
    const field = this.#fields.get(name);
    if (field) field.input.value = value;
    this.#changed();
  }

  #group(group) {
    const options = OPTIONS.filter((option) => option.group === group);
    return el("fieldset", {}, el("legend", { text: group }), ...options.map((option) => this.#field(option)));
  }

  #field(option) {
    const id = `option-${option.name}`;
    const input = this.#input(option, id);
    const about = el("p", { id: `${id}-about`, class: "fine" });
    input.value = this.values[option.name] ?? "";
    input.addEventListener("input", () => {
      this.values[option.name] = input.value.trim();
      this.#changed();
    });
    this.#fields.set(option.name, { option, input, about });
    const isWide = ["text", "json", "choice"].includes(option.kind);
    return el("div", { class: `field${isWide ? " tall" : ""}` }, el("label", { for: id, text: option.label }), input, about);
  }

  #input(option, id) {
    const common = { id, "aria-describedby": `${id}-about` };
    const standard = defaultOf(option, this.model);
    if (option.kind === "text") return el("textarea", { ...common, rows: 3, spellcheck: "false" });
    if (option.kind === "json") return el("textarea", { ...common, class: "code", rows: 3, spellcheck: "false" });
    if (option.kind === "choice") return choice(common, option.choices(this.model), standard);
    if (option.kind === "flag") return choice(common, ["true", "false"], null);
    const inputmode = option.kind === "real" ? "decimal" : "numeric";
    return el("input", { ...common, type: "text", inputmode, autocomplete: "off", placeholder: standard ?? "" });
  }

  #changed() {
    localStorage.setItem(STORE, JSON.stringify(this.values));
    this.#refresh();
  }

  #refresh() {
    for (const { option, input, about } of this.#fields.values()) {
      const reason = refusal(option, this.values, this.model);
      const wrong = reason ? null : complaint(option, input.value.trim());
      input.disabled = reason !== null;
      input.setAttribute("aria-invalid", wrong ? "true" : "false");
      about.textContent = reason ?? wrong ?? explain(option, this.values, this.model);
      about.className = wrong ? "fine wrong" : reason ? "fine reason" : "fine";
    }
    this.onChange();
  }

  // The first thing that is wrong, to be said before a request is sent.
  get complaint() {
    for (const option of OPTIONS) {
      const wrong = complaint(option, this.values[option.name]);
      if (wrong && !refusal(option, this.values, this.model)) return wrong;
    }
    return null;
  }

  #reset() {
    this.values = {};
    this.#changed();
    this.show(this.model);
  }
}

function load() {
  try {
    return JSON.parse(localStorage.getItem(STORE) ?? "{}");
  } catch {
    return {};
  }
}

function choice(properties, names, standard) {
  const first = el("option", { value: "", text: standard ? `the model's own: ${standard}` : "model's own" });
  return el("select", properties, first, ...names.map((name) => el("option", { value: name, text: name })));
}

function explain(option, values, model) {
  if (option.name !== "policy") return option.about;
  return POLICIES[policyOf(values, model)] ?? option.about;
}

function keyHelp() {
  const send = [["Enter", "send"], ["Shift Enter", "new line"]];
  const keys = [...send, ["Esc", "stop, or close this"], ["/", "write"], [",", "settings"]];
  const rows = keys.flatMap(([key, text]) => [el("dt", {}, el("kbd", { text: key })), el("dd", { text })]);
  return el("dl", { class: "keys", "aria-label": "Keys" }, ...rows);
}
