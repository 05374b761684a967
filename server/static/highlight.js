// Colours for code: comments, strings, numbers and keywords, and nothing that needs to understand
// the language. Builds nodes; the text is all there, in order, as text.
import { el } from "./dom.js";

const words = (text) => new Set(text.split(" "));
const KEYWORDS = {
  hash: words("and as assert async await break case class continue def del do done elif else end esac except export false finally fi for from function global if import in is lambda local match module nil None nonlocal not null or pass raise require return self then True False true try unless until while with yield"),
  slash: words("abstract as async await bool boolean break case catch char class const continue default defer delete do double else enum export extends extern false final finally float fn for func function go if impl implements import in instanceof int interface let loop long match mod mut namespace new nil null nullptr of package private protected pub public return self short static string struct super switch this throw trait true try type typedef typeof undefined union unsigned use using var void while yield"),
  dash: words("all alter and as asc begin between by case count create cross delete desc distinct drop else end exists false foreign from full group having in index inner insert into is join key left like limit not null on or order outer primary references right select set table then true union unique update values view when where with"),
};
const FAMILIES = {
  hash: "bash conf dockerfile elixir ini makefile perl py python r rb ruby sh shell toml yaml yml zsh",
  slash: "c c++ cc cpp cs csharp css cxx dart go golang h hpp java javascript js json jsx kotlin kt objc php rs rust scala scss swift ts tsx typescript",
  dash: "haskell hs lua sql",
};
const COMMENTS = { hash: "#[^\\n]*", slash: "//[^\\n]*|/\\*[^]*?(?:\\*/|$)", dash: "--[^\\n]*" };
const TRIPLE = `"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)`;
// A string ends with its line, whatever else is missing.
const STRINGS = "\"(?:[^\"\\\\\\n]|\\\\.)*\"?|'(?:[^'\\\\\\n]|\\\\.)*'?|`(?:[^`\\\\]|\\\\[^])*`?";
const NUMBER = "\\b(?:0[xXbBoO][\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)\\w*";
const WORD = "[\\p{L}_$][\\p{L}\\p{N}_$]*";
// Where a quotation is never closed, nothing after it is searched again and again.
const LONGEST_CODE = 100_000;

const families = new Map(Object.entries(FAMILIES).flatMap(([family, names]) => names.split(" ").map((name) => [name, family])));
const patterns = new Map(Object.entries(COMMENTS).map(([family, comment]) => {
  const strings = family === "hash" ? `${TRIPLE}|${STRINGS}` : STRINGS;
  return [family, new RegExp(`(?<comment>${comment})|(?<string>${strings})|(?<number>${NUMBER})|(?<word>${WORD})`, "gu")];
}));

// Texts and coloured spans; the whole text alone where the language is not known.
export function highlight(text, language) {
  const family = families.get(language.toLowerCase());
  if (!family || text.length > LONGEST_CODE) return [text];
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(patterns.get(family))) {
    const kind = kindOf(match, family);
    if (!kind) continue;
    if (match.index > end) parts.push(text.slice(end, match.index));
    parts.push(el("span", { class: `code-${kind}`, text: match[0] }));
    end = match.index + match[0].length;
  }
  if (end < text.length) parts.push(text.slice(end));
  return parts;
}

function kindOf({ groups }, family) {
  if (!groups.word) return groups.comment ? "comment" : groups.string ? "string" : "number";
  const word = family === "dash" ? groups.word.toLowerCase() : groups.word;
  return KEYWORDS[family].has(word) ? "keyword" : null;
}
