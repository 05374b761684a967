// The quiet line under an answer: what it cost, and what it takes to see it again.

export function meterParts(answer) {
  const { summary, timings } = answer;
  if (!summary) return [];
  const parts = [];
  if (timings) parts.push(`${round(timings.predicted_per_second)} tokens/s`);
  parts.push(`${summary.nfe} NFE`, `${summary.tokens_per_forward.toFixed(2)} tokens per forward`);
  if (timings) parts.push(spellSeconds(timings.predicted_ms / 1000));
  const { accepted_prediction_tokens: kept = 0, rejected_prediction_tokens: lost = 0 } = answer.usage?.completion_tokens_details ?? {};
  if (kept + lost) parts.push(`${kept} of ${kept + lost} tokens kept`);
  parts.push(summary.policy ?? answer.policy, `seed ${answer.seed}`);
  return parts;
}

// While it runs: where it is.
export function progressParts(state) {
  if (!state.length) return ["waiting for a slot"];
  const filled = state.length - state.masked;
  return [`step ${state.step}`, `${filled} of ${state.length} filled`];
}

function round(number) {
  if (number >= 100) return String(Math.round(number));
  return number.toFixed(number >= 10 ? 1 : 2);
}

function spellSeconds(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${round(seconds)} s`;
}
