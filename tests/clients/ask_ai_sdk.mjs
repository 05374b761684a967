// Asks the questions on standard input with the AI SDK and its provider for compatible servers.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The packages lie beside the folder that this is run in, not beside this file.
const require = createRequire(`${process.cwd()}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { generateText, jsonSchema, streamText, tool } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const task = JSON.parse(readFileSync(0, "utf8"));
const provider = createOpenAICompatible({ name: "ours", baseURL: task.base_url, apiKey: "none", includeUsage: true });
const { model, messages, max_tokens, seed } = task.ask;
const common = { model: provider(model), messages, maxOutputTokens: max_tokens, seed, maxRetries: 0 };

async function askWhole(ask) {
  const { text, finishReason, usage } = await generateText(ask);
  return { text, finish_reason: finishReason, completion_tokens: usage.outputTokens, frames: [] };
}

async function askStream(ask) {
  let text = "";
  const frames = [];
  const answer = streamText({ ...ask, includeRawChunks: true });
  for await (const part of answer.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") text += part.text;
    const chunk = part.type === "raw" ? part.rawValue : null;
    if (!chunk?.choices?.length) continue;
    const inside = chunk.choices[0].delta.provider_specific_fields?.diffusion;
    frames.push(...(chunk.diffusion ? [chunk.diffusion] : inside ?? []));
  }
  const usage = await answer.usage;
  return { text, finish_reason: await answer.finishReason, completion_tokens: usage.outputTokens, frames };
}

function called(calls, finishReason) {
  // Its own word for OpenAI's "tool_calls".
  const finish_reason = finishReason === "tool-calls" ? "tool_calls" : finishReason;
  return { name: calls[0].toolName, arguments: calls[0].input, finish_reason };
}

async function askCalls({ messages, tools, max_tokens, seed }) {
  const { name, description, parameters } = tools[0].function;
  const known = { [name]: tool({ description, inputSchema: jsonSchema(parameters) }) };
  const limits = { maxOutputTokens: max_tokens, seed, maxRetries: 0 };
  const ask = { model: provider(model), messages, tools: known, toolChoice: { type: "tool", toolName: name }, ...limits };
  const whole = await generateText(ask);
  const stream = streamText(ask);
  return {
    whole: called(whole.toolCalls, whole.finishReason),
    loop: called(await stream.toolCalls, await stream.finishReason),
  };
}

const result = { answers: {} };
result.version = JSON.parse(readFileSync("node_modules/ai/package.json", "utf8")).version;
for (const [style, diffusion] of Object.entries(task.styles)) {
  const ask = { ...common, providerOptions: { ours: { diffusion } } };
  result.answers[`whole, ${style}`] = await askWhole(ask);
  result.answers[`loop, ${style}`] = await askStream(ask);
}
result.calls = await askCalls(task.call);
try {
  await generateText({ ...common, temperature: 9 });
} catch (error) {
  result.refusal = { status: error.statusCode, message: error.message };
}
process.stdout.write(JSON.stringify(result));
