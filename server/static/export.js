// Saves an answer as one self-contained page that replays it: its frames, the modules of the
// player and the styles, and a policy that lets it load nothing.
import { el } from "./dom.js";

const MODULES = ["dom.js", "replay.js", "canvas.js", "player.js", "meter.js", "standalone.js"];
const STYLES = ["theme.css", "canvas.css"];

export async function exportReplay(answer, prompt, around) {
  const read = async (name) => {
    const file = await fetch(new URL(`./${name}`, import.meta.url));
    if (!file.ok) throw new Error(`${name} could not be read`);
    return file.text();
  };
  const [modules, styles] = await Promise.all([MODULES, STYLES].map((names) => Promise.all(names.map(read))));
  const page = buildPage({ prompt, around, answer }, modules, styles);
  const link = el("a", { download: `diffusiongpt-${answer.seed}.html` });
  link.href = URL.createObjectURL(new Blob([page], { type: "text/html" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// One script of several modules: what they import from each other is already there.
function join(modules) {
  return modules.map((source) => source.replace(/^import .*$/gm, "").replace(/^export /gm, "")).join("\n");
}

function buildPage(run, modules, styles) {
  const { values, ...answer } = run.answer;
  // No text of a model or a user can end the script element: there is no "<" in it.
  const data = JSON.stringify({ ...run, answer }).replaceAll("<", "\\u003c");
  const nonce = Array.from(crypto.getRandomValues(new Uint32Array(4)), (number) => number.toString(36)).join("");
  const policy = `default-src 'none'; script-src 'nonce-${nonce}'; style-src 'nonce-${nonce}'; base-uri 'none'; form-action 'none'`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>diffusionGPT replay</title>
<style nonce="${nonce}">${styles.join("\n")}</style>
</head>
<body class="standalone">
<script type="application/json" id="replay">${data}</script>
<script type="module" nonce="${nonce}">
${join(modules)}
mountReplay(document.body, JSON.parse(document.getElementById("replay").textContent));
</script>
</body>
</html>
`;
}
