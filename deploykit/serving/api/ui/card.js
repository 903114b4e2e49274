// A model card's Markdown as elements: headings, paragraphs, lists, tables, code and strong text. Everything else, and
// all HTML, stays the text that it is: nodes are made and filled, and nothing is parsed as markup.

/** Makes an element: `make("p", {class: "muted"}, "text", node)`; an attribute that is false or null is left out. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const INLINE = /`([^`]+)`|\*\*([^*]+)\*\*/g; // code, or strong text

/** The nodes of a line: text, code and strong text. */
function inlineNodes(text) {
  const nodes = [];
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(last, match.index), match[1] ? make("code", {}, match[1]) : make("strong", {}, match[2]));
    last = match.index + match[0].length;
  }
  return [...nodes, text.slice(last)].filter((part) => part !== "");
}

/** The cells of a row of a table. */
const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

/** A table; its head is left out if its cells are empty. */
function table(lines) {
  const [head, , ...rows] = lines.map(cells);
  const hasTitles = head.some((cell) => cell);
  const body = rows.map((row) => make("tr", {}, ...row.map((cell, index) =>
    index === 0 ? make("th", { scope: "row" }, ...inlineNodes(cell)) : make("td", {}, ...inlineNodes(cell)))));
  const titles = make("tr", {}, ...head.map((cell) => make("th", { scope: "col" }, ...inlineNodes(cell))));
  return make("table", {}, ...(hasTitles ? [make("thead", {}, titles)] : []), make("tbody", {}, ...body));
}

const BLOCKS = [ // a line belongs to the first kind that it matches; lines of one kind in a row are one block
  { kind: "table", starts: /^\s*\|.*\|\s*$/ },
  { kind: "list", starts: /^\s*[-*] / },
  { kind: "text", starts: /^(?!#)\S/ },
];

/** Returns the elements of a text. Its headings are h3, below those of the page, and h4 below an h3. */
export function render(markdown) {
  const elements = [];
  const lines = markdown.split(/\r?\n/);
  while (lines.length) {
    const line = lines.shift();
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    if (heading) {
      const deep = heading[1].length > 2 && elements.some((node) => node.tagName === "H3");
      elements.push(make(deep ? "h4" : "h3", {}, ...inlineNodes(heading[2])));
      continue;
    }
    const block = BLOCKS.find(({ starts }) => starts.test(line));
    if (!block) continue;
    const blockLines = [line];
    const next = () => BLOCKS.find(({ starts }) => starts.test(lines[0]));
    while (lines.length && next() === block) blockLines.push(lines.shift());
    if (block.kind === "table") elements.push(table(blockLines));
    else if (block.kind === "text") elements.push(make("p", {}, ...inlineNodes(blockLines.join(" "))));
    else elements.push(make("ul", {}, ...blockLines.map((item) => make("li", {}, ...inlineNodes(item.replace(block.starts, ""))))));
  }
  return elements;
}
