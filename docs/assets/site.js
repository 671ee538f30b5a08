// Wide tables and formulas scroll sideways in a box of their own. Whoever has no pointer must be able to reach that
// box, so it takes the focus and has a name as long as it scrolls.
const BOXES = ".md-typeset__scrollwrap, .formula";

function mark(box) {
  const scrolls = box.scrollWidth > box.clientWidth;
  for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", label(box)]]) {
    if (scrolls) box.setAttribute(name, value);
    else box.removeAttribute(name);
  }
}

function label(box) {
  const headings = [...document.querySelectorAll(".md-typeset :is(h1, h2, h3, h4)")];
  const above = headings.filter((h) => h.compareDocumentPosition(box) & Node.DOCUMENT_POSITION_FOLLOWING).pop();
  const kind = box.matches(".formula") ? "Formula" : "Table";
  return `${kind}, scrolls sideways: ${(above?.firstChild?.textContent ?? document.title).trim()}`;
}

const boxes = new ResizeObserver((entries) => entries.forEach(({ target }) => mark(target.closest(BOXES))));

document$.subscribe(() => {
  boxes.disconnect();
  setTimeout(() => { // by then the theme has wrapped the tables
    for (const box of document.querySelectorAll(BOXES)) {
      mark(box);
      boxes.observe(box); // the box and what is in it may both change their width later
      boxes.observe(box.querySelector("table, math"));
    }
  });
});
