// What all parts share. Text from artifacts enters the document as text nodes only, never as markup.

const values = JSON.parse(document.getElementById("values").textContent);
const find = (id) => document.getElementById(id);

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function fill(select, options) {
  for (const [value, text] of options) select.append(make("option", text, { value }));
}

const counted = (number, of, what) => (number === of ? `${of} ${what}` : `${number} of ${of} ${what}`);

// The navigation marks the last section whose head has come to the upper part of the window.
const links = [...document.querySelectorAll("nav a")];
const sections = links.map((link) => find(link.getAttribute("href").slice(1)));
function mark() {
  const passed = sections.filter((section) => section.getBoundingClientRect().top < innerHeight / 3);
  const current = passed.length ? passed.length - 1 : 0;
  links.forEach((link, place) => link.setAttribute("aria-current", place === current));
}
addEventListener("scroll", mark, { passive: true });
mark();
