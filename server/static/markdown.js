// A small Markdown that builds nodes. Everything a model writes stays text: no HTML, no images,
// and links show where they lead instead of leading there.
import { el } from "./dom.js";
import { highlight } from "./highlight.js";

const FENCE = /^(`{3,}|~{3,})\s*([\w+-]*)/;
const HEADING = /^(#{1,6}) +(\S.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,}\s*$/;
const BULLET = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const TABLE_LINE = /^\s*\|?(\s*:?-+:?\s*\|)+\s*:?-*:?\s*$/;

// No emphasis is longer than this, so that a text of nothing but marks costs no quadratic search.
const LONGEST_INLINE = 1000;

export function renderMarkdown(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...renderBlocks(text.split("\n"), 0));
  return fragment;
}

function renderBlocks(lines, depth) {
  const nodes = [];
  let index = 0;
  while (index < lines.length) {
    const [node, next] = renderBlock(lines, index, depth);
    if (node) nodes.push(node);
    index = next;
  }
  return nodes;
}

function renderBlock(lines, index, depth) {
  const line = lines[index];
  if (line.trim() === "") return [null, index + 1];
  const fence = line.match(FENCE);
  if (fence) return renderFence(lines, index, fence);
  const heading = line.match(HEADING);
  // The page's own headings come first; a model's begin below them.
  if (heading) return [el(`h${Math.min(heading[1].length + 2, 6)}`, {}, ...inline(heading[2])), index + 1];
  if (RULE.test(line)) return [el("hr"), index + 1];
  if (QUOTE.test(line) && depth < 4) return renderQuote(lines, index, depth);
  if (BULLET.test(line) && depth < 4) return renderList(lines, index, depth);
  if (line.includes("|") && isTableLine(lines[index + 1] ?? "")) return renderTable(lines, index);
  return renderParagraph(lines, index);
}

function isTableLine(line) {
  return line.length < LONGEST_INLINE && TABLE_LINE.test(line);
}

function renderFence(lines, index, [, mark, language]) {
  let end = index + 1;
  while (end < lines.length && !lines[end].startsWith(mark)) end += 1;
  const text = lines.slice(index + 1, end).join("\n");
  const code = el("code", { "data-language": language || null }, ...highlight(text, language));
  return [el("pre", { tabindex: "0", role: "region", "aria-label": `Code ${language}`.trim() }, code), end + 1];
}

function renderQuote(lines, index, depth) {
  let end = index;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(index, end).map((line) => line.match(QUOTE)[1]);
  return [el("blockquote", {}, ...renderBlocks(inner, depth + 1)), end];
}

function renderList(lines, index, depth) {
  const [, margin, mark] = lines[index].match(BULLET);
  const isOrdered = /\d/.test(mark);
  const items = [];
  let end = index;
  while (end < lines.length) {
    const bullet = lines[end].match(BULLET);
    if (bullet && bullet[1].length <= margin.length + 1) {
      if (/\d/.test(bullet[2]) !== isOrdered || bullet[1].length < margin.length) break;
      items.push([bullet[3]]);
    } else if (lines[end].startsWith(`${margin}  `) || (bullet && items.length)) {
      items.at(-1).push(lines[end].slice(margin.length + 2));
    } else break;
    end += 1;
  }
  const start = isOrdered ? parseInt(mark, 10) : null;
  const children = items.map((item) => el("li", {}, ...tighten(renderBlocks(item, depth + 1))));
  return [el(isOrdered ? "ol" : "ul", { start: start === 1 ? null : start }, ...children), end];
}

// A list item's only paragraph needs no paragraph.
function tighten(nodes) {
  return nodes[0]?.tagName === "P" ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes;
}

function renderTable(lines, index) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, tag) => el("tr", {}, ...cells(line).map((cell) => el(tag, {}, ...inline(cell))));
  let end = index + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const head = el("thead", {}, row(lines[index], "th"));
  const body = el("tbody", {}, ...lines.slice(index + 2, end).map((line) => row(line, "td")));
  return [el("div", { class: "table" }, el("table", {}, head, body)), end];
}

function renderParagraph(lines, index) {
  let end = index + 1;
  while (end < lines.length && !startsBlock(lines[end])) end += 1;
  return [el("p", {}, ...inline(lines.slice(index, end).join("\n"))), end];
}

function startsBlock(line) {
  return line.trim() === "" || [FENCE, HEADING, RULE, QUOTE, BULLET].some((pattern) => pattern.test(line));
}

const INLINE = [
  [/^(`{1,8})(?!`)(.+?)\1(?!`)/s, (match) => el("code", { text: match[2].trim() })],
  [/^\*\*(?=\S)(.+?\S|\S)\*\*/s, (match) => el("strong", {}, ...inline(match[1]))],
  [/^\*(?=[^\s*])(.*?[^\s*])\*(?!\*)/s, (match) => el("em", {}, ...inline(match[1]))],
  [/^~~(?=\S)(.+?)~~/s, (match) => el("s", {}, ...inline(match[1]))],
  [/^!?\[([^\]]*)\]\(([^)\s]*)(?:\s[^)]*)?\)/, (match) => el("span", { class: "link" }, ...inline(match[1]), ` (${match[2]})`)],
  [/^\\([\\`*_~[\]()#>!|.-])/, (match) => document.createTextNode(match[1])],
];
const SPECIAL = /[`*~[!\\]/;

function inline(text) {
  const nodes = [];
  let plain = "";
  let rest = text;
  while (rest) {
    const skip = rest.search(SPECIAL);
    const ahead = skip < 0 ? rest.length : skip;
    plain += rest.slice(0, ahead);
    rest = rest.slice(ahead);
    if (!rest) break;
    const found = findInline(rest);
    if (found) {
      if (plain) nodes.push(document.createTextNode(plain));
      plain = "";
      nodes.push(found.node);
      rest = rest.slice(found.length);
    } else {
      // A run of the same mark that opens nothing is passed over at once.
      const [run] = rest.match(/^(.)\1*/s);
      plain += run;
      rest = rest.slice(run.length);
    }
  }
  if (plain) nodes.push(document.createTextNode(plain));
  return nodes;
}

function findInline(text) {
  const near = text.slice(0, LONGEST_INLINE);
  for (const [pattern, make] of INLINE) {
    const match = near.match(pattern);
    if (match) return { node: make(match), length: match[0].length };
  }
  return null;
}
