// Asks the questions on standard input with the openai package: loops and its stream helper.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The packages lie beside the folder that this is run in, not beside this file.
const require = createRequire(`${process.cwd()}/`);
const name = process.argv[2];
const { default: OpenAI } = await import(pathToFileURL(require.resolve(name)));
const task = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: task.base_url, apiKey: "none", maxRetries: 0 });
const create = (ask) => client.chat.completions.create(ask);

function seen(text, choice, usage, frames = []) {
  return { text, finish_reason: choice.finish_reason, completion_tokens: usage.completion_tokens, frames };
}

async function askWhole(ask) {
  const answer = await create(ask);
  return seen(answer.choices[0].message.content, answer.choices[0], answer.usage);
}

async function askStream(ask) {
  let text = "", last = null, usage = null;
  const frames = [];
  for await (const chunk of await create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
    usage = chunk.usage ?? usage;
    last = chunk.choices[0] ?? last;
    const delta = chunk.choices[0]?.delta;
    text += delta?.content ?? "";
    if (!chunk.choices.length) continue;
    frames.push(...(chunk.diffusion ? [chunk.diffusion] : delta.provider_specific_fields?.diffusion ?? []));
  }
  return seen(text, last, usage, frames);
}

async function askHelper(ask) {
  let text = "";
  const stream = client.chat.completions.stream({ ...ask, stream_options: { include_usage: true } });
  stream.on("content", (delta) => (text += delta));
  const answer = await stream.finalChatCompletion();
  if (answer.choices[0].message.content !== text) throw new Error(`pieces ${text} differ from the whole`);
  return seen(text, answer.choices[0], answer.usage);
}

function called({ name, arguments: text }, choice) {
  return { name, arguments: JSON.parse(text), finish_reason: choice.finish_reason };
}

async function callWhole(ask) {
  const choice = (await create(ask)).choices[0];
  return called(choice.message.tool_calls[0].function, choice);
}

async function callStream(ask) {
  const call = { name: "", arguments: "" };
  let last = null;
  for await (const chunk of await create({ ...ask, stream: true })) {
    last = chunk.choices[0];
    for (const { function: part } of last.delta.tool_calls ?? []) {
      call.name += part.name ?? "";
      call.arguments += part.arguments ?? "";
    }
  }
  return called(call, last);
}

async function callHelper(ask) {
  const choice = (await client.chat.completions.stream(ask).finalChatCompletion()).choices[0];
  return called(choice.message.tool_calls[0].function, choice);
}

const ways = { whole: askWhole, loop: askStream, helper: askHelper };
const callWays = { whole: callWhole, loop: callStream, helper: callHelper };
const result = { answers: {}, calls: {}, models: [] };
result.version = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8")).version;
for await (const model of client.models.list()) result.models.push(model.id);
for (const [style, diffusion] of Object.entries(task.styles))
  for (const [way, run] of Object.entries(ways))
    result.answers[`${way}, ${style}`] = await run({ ...task.ask, diffusion });
for (const [way, run] of Object.entries(callWays)) result.calls[way] = await run(task.call);
try {
  await create({ ...task.ask, temperature: 9 });
} catch (error) {
  result.refusal = { status: error.status, message: error.message, has_request_id: Boolean(error.requestID) };
}
process.stdout.write(JSON.stringify(result));
