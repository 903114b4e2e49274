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

const INLINE = /`([^`]+)`|\*\*([^*]+)\*\*/g;

function inline(text) {
  const found = [];
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    found.push(text.slice(last, match.index), match[1] ? make("code", {}, match[1]) : make("strong", {}, match[2]));
    last = match.index + match[0].length;
  }
  return [...found, text.slice(last)].filter((part) => part !== "");
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

/** A table; one whose head is empty has its names in the first column. */
function table(lines) {
  const [head, , ...rows] = lines.map(cells);
  const named = head.some((cell) => cell);
  const body = rows.map((row) => make("tr", {}, ...row.map((cell, index) =>
    index === 0 ? make("th", { scope: "row" }, ...inline(cell)) : make("td", {}, ...inline(cell)))));
  const titles = make("tr", {}, ...head.map((cell) => make("th", { scope: "col" }, ...inline(cell))));
  return make("table", {}, ...(named ? [make("thead", {}, titles)] : []), make("tbody", {}, ...body));
}

const BLOCKS = [ // what a line begins, and which lines after it belong to it
  { kind: "table", starts: /^\s*\|.*\|\s*$/ },
  { kind: "list", starts: /^\s*[-*] / },
  { kind: "text", starts: /^(?!#)\S/ },
];

/** Returns the elements of a text; its headings are of the third level, below those of the page, and leave none out. */
export function render(markdown) {
  const found = [];
  const lines = markdown.split(/\r?\n/);
  while (lines.length) {
    const line = lines.shift();
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    if (heading) {
      const deep = heading[1].length > 2 && found.some((node) => node.tagName === "H3");
      found.push(make(deep ? "h4" : "h3", {}, ...inline(heading[2])));
      continue;
    }
    const block = BLOCKS.find(({ starts }) => starts.test(line));
    if (!block) continue;
    const own = [line];
    const next = () => BLOCKS.find(({ starts }) => starts.test(lines[0]));
    while (lines.length && next() === block) own.push(lines.shift());
    if (block.kind === "table") found.push(table(own));
    else if (block.kind === "text") found.push(make("p", {}, ...inline(own.join(" "))));
    else found.push(make("ul", {}, ...own.map((item) => make("li", {}, ...inline(item.replace(block.starts, ""))))));
  }
  return found;
}
