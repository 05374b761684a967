// What may be set, in one line each; what the served model refuses, and why; and how it is asked.

export const POLICIES = {
  ancestral: "The model's own law: each position has a random time at which it is filled.",
  first_hitting: "The model's own law, one position after another in random order.",
  random: "Random positions, an equal share each step.",
  confidence: "The surest positions first, an equal share each step.",
  margin: "Where the best word is furthest ahead of the second, an equal share each step.",
  entropy: "Where the fewest words are possible, an equal share each step.",
  threshold: "All that is surer than the threshold, at once.",
  factor: "As many at once as their confidence allows together.",
  entropy_bound: "As many at once as stay within a budget of uncertainty.",
  pos_bias: "As entropy_bound, with a preference for words further left.",
  stability: "What has stayed the best word for some steps, and is sure enough.",
  credit: "All that is sure, where a word that kept coming up counts for more.",
  joint: "All that is surer than the threshold; filled words may still be edited.",
  verify: "The surest first; what a look at the full block doubts is drawn anew.",
  wino: "The surest first; what the rest of the text doubts is drawn anew in every step.",
  p2: "Each step plans all words anew and masks the least sure again.",
  remdm: "Fills, masks some words again, and fills them better.",
  remdm_rescale: "As remdm, masking again in proportion to what could be.",
  remdm_loop: "As remdm, with a stretch in the middle that only rewrites.",
  remdm_confidence: "As remdm, masking again what was least sure.",
};
const GATES = ["threshold", "factor", "entropy_bound"];
const BLOCK_LENGTH = 32;

// `place`: "top" fields go into the request as they are, "diffusion" fields into its extension.
export const OPTIONS = [
  { name: "policy", label: "Policy", group: "Denoising", kind: "choice", place: "diffusion",
    choices: (model) => Object.keys(model.diffusion.policies),
    about: "Which masked positions are filled in a step." },
  { name: "steps", label: "Steps", group: "Denoising", kind: "integer", min: 1, place: "diffusion",
    about: "Most steps the answer may take. Fewer are faster and rougher." },
  { name: "mode", label: "Mode", group: "Denoising", kind: "choice", place: null,
    choices: () => ["standard", "semi-autoregressive"],
    about: "The whole canvas at once, or block by block from left to right." },
  { name: "block_length", label: "Block length", group: "Denoising", kind: "integer", min: 1, place: "diffusion",
    about: "Positions denoised at a time in semi-autoregressive mode." },
  { name: "threshold", label: "Threshold", group: "Denoising", kind: "real", min: 0, max: 1, step: 0.05, place: "diffusion",
    about: "Fill every position that the model is surer of than this." },
  { name: "factor", label: "Factor", group: "Denoising", kind: "real", min: 0, step: 0.1, place: "diffusion",
    about: "Higher fills more at once; at 1 greedy answers stay what they would be one by one." },
  { name: "entropy_bound", label: "Entropy bound", group: "Denoising", kind: "real", min: 0, step: 0.05, place: "diffusion",
    about: "Uncertainty that one step may take on, in nats." },
  { name: "gap", label: "Gap", group: "Denoising", kind: "integer", min: 1, place: "diffusion",
    about: "Least distance of positions filled in the same step." },
  { name: "edits", label: "Edits", group: "Denoising", kind: "flag", place: "diffusion",
    about: "Words that are filled may still be replaced." },
  { name: "temperature", label: "Temperature", group: "Drawing", kind: "real", min: 0, max: 2, step: 0.1, place: "top",
    about: "0 takes the likeliest word; more is more varied." },
  { name: "top_p", label: "Top-p", group: "Drawing", kind: "real", min: 0.05, max: 1, step: 0.05, place: "top",
    about: "Draw only from the likeliest words, up to this share of probability." },
  { name: "top_k", label: "Top-k", group: "Drawing", kind: "integer", min: 0, place: "top",
    about: "Draw only from so many of the likeliest words; 0 is off." },
  { name: "max_tokens", label: "Max tokens", group: "Drawing", kind: "integer", min: 1, place: "top",
    about: "Length of the canvas: the longest that the answer can be." },
  { name: "seed", label: "Seed", group: "Drawing", kind: "digits", place: null,
    about: "The same seed gives the same answer. Empty draws a new one each time." },
  { name: "system", label: "System prompt", group: "Chat", kind: "text", place: null,
    about: "Told to the model before the chat." },
  { name: "tools", label: "Tools", group: "Chat", kind: "json", place: "top", isList: true,
    about: "A JSON list of functions that the model may call, as OpenAI's API takes them." },
  { name: "response_format", label: "Form of the answer", group: "Chat", kind: "json", place: "top",
    about: "What an answer must be, such as {\"type\": \"json_object\"} or a JSON schema." },
];

// Whether a model denoises all positions together if asked to.
export function takesWholeCanvas({ diffusion: { attention, block_lengths } }) {
  return attention === "bidirectional" || Boolean(block_lengths?.includes(0));
}

// What an empty field stands for.
export function defaultOf(option, model) {
  const { defaults, block_length } = model.diffusion;
  if (option.name === "mode") return block_length ? "semi-autoregressive" : "standard";
  if (option.name === "block_length") return block_length ?? BLOCK_LENGTH;
  if (option.name === "steps") return "no limit";
  if (option.name === "seed") return "a new one";
  if (GATES.includes(option.name)) return defaults[option.name] ?? "the policy's own";
  return defaults[option.name] ?? null;
}

// Why an option cannot be used now, or null.
export function refusal(option, values, model) {
  const { block_length: own, block_lengths: lengths, policies, attention, edits } = model.diffusion;
  const isFixed = attention === "block_causal" && !lengths?.length;
  if (option.name === "mode" && !takesWholeCanvas(model)) return `${model.id} was trained to write block by block.`;
  if (option.name === "block_length" && isFixed) return `${model.id} was trained in blocks of ${own} and takes no others.`;
  if (option.name === "block_length" && values.mode !== "semi-autoregressive" && !own) return "Only in semi-autoregressive mode.";
  if (option.name === "edits" && !edits) return "This model was not trained to edit what it wrote.";
  if (GATES.includes(option.name)) return refuseGate(values, model.diffusion.defaults, policies);
  return null;
}

function refuseGate(values, defaults, policies) {
  const policy = values.policy || defaults.policy;
  if (policies[policy]?.adaptive) return null;
  return `${policy} fills a share each step and has no gate.`;
}

export function policyOf(values, model) {
  return values.policy || model.diffusion.defaults.policy;
}

// The fields of the request body; empty and refused options are left to the model.
export function toRequest(values, model) {
  const body = { diffusion: {} };
  for (const option of OPTIONS) {
    const value = values[option.name];
    if (!option.place || value === undefined || value === "" || refusal(option, values, model)) continue;
    const target = option.place === "top" ? body : body.diffusion;
    target[option.name] = spell(option, value);
  }
  const isFixed = model.diffusion.attention === "block_causal";
  if (takesWholeCanvas(model) && values.mode === "standard") body.diffusion.block_length = 0;
  if (!isFixed && values.mode === "semi-autoregressive") body.diffusion.block_length ??= BLOCK_LENGTH;
  return body;
}

function spell(option, value) {
  if (option.kind === "integer" || option.kind === "real") return Number(value);
  if (option.kind === "json") return JSON.parse(value);
  return option.kind === "flag" ? value === "true" : value;
}

// What is wrong with a value before the server has seen it, or null.
export function complaint(option, value) {
  if (value === "" || value === undefined) return null;
  if (option.kind === "digits") return /^-?\d{1,19}$/.test(value) ? null : `${option.label} is a whole number of up to 64 bits.`;
  if (option.kind === "json") return complainOfJson(option, value);
  if (option.kind !== "integer" && option.kind !== "real") return null;
  const number = Number(value);
  if (!Number.isFinite(number)) return `${option.label} is a number.`;
  if (option.kind === "integer" && !Number.isInteger(number)) return `${option.label} is a whole number.`;
  if (number < (option.name === "top_p" ? Number.MIN_VALUE : option.min)) return `${option.label} is at least ${option.min}.`;
  if (option.max !== undefined && number > option.max) return `${option.label} is at most ${option.max}.`;
  return null;
}

function complainOfJson(option, value) {
  const kind = option.isList ? "a list" : "an object";
  try {
    const parsed = JSON.parse(value);
    const isKind = option.isList ? Array.isArray(parsed) : parsed !== null && typeof parsed === "object" && !Array.isArray(parsed);
    return isKind ? null : `${option.label}: ${kind} in JSON.`;
  } catch {
    return `${option.label}: ${kind} in JSON, and this is none yet.`;
  }
}

export function drawSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}
