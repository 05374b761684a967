// Side by side: two ways to denoise the same question with the same seed.
import { el } from "./dom.js";
import { defaultOf, OPTIONS } from "./options.js";

const STORE = "diffusiongpt-pair";
const STANDARD = [{ policy: "entropy_bound", steps: "" }, { policy: "random", steps: "" }];

export class Pair {
  constructor(root) {
    this.root = root;
    this.isOn = false;
    this.variants = load();
  }

  toggle(isOn) {
    this.isOn = isOn;
    this.root.hidden = !isOn;
  }

  show(model) {
    const policies = Object.keys(model.diffusion.policies);
    for (const variant of this.variants) if (!policies.includes(variant.policy)) variant.policy = policies[0];
    this.root.replaceChildren(
      ...this.variants.map((variant, index) => this.#makeVariant(variant, index, policies, model)),
      el("p", { class: "fine", text: "One question, one seed, both in the same batch." }),
    );
  }

  #makeVariant(variant, index, policies, model) {
    const letter = "AB"[index];
    const keep = (name) => (event) => {
      variant[name] = event.target.value.trim();
      localStorage.setItem(STORE, JSON.stringify(this.variants));
    };
    const policy = el("select", { "aria-label": `Policy of ${letter}`, on: { input: keep("policy") } },
      ...policies.map((name) => el("option", { value: name, text: name })));
    policy.value = variant.policy;
    const steps = el("input", {
      type: "text", inputmode: "numeric", "aria-label": `Steps of ${letter}`, autocomplete: "off",
      placeholder: defaultOf(OPTIONS.find(({ name }) => name === "steps"), model), on: { input: keep("steps") },
    });
    steps.value = variant.steps;
    const name = el("span", { class: "letter", text: letter });
    return el("div", { class: "variant" }, name, policy, steps, el("span", { class: "fine", text: "steps" }));
  }
}

function load() {
  try {
    return JSON.parse(localStorage.getItem(STORE)) ?? structuredClone(STANDARD);
  } catch {
    return structuredClone(STANDARD);
  }
}
