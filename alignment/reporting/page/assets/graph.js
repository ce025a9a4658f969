// The lineage: who is chosen tells its settings, and what it descends from and what came of it stands out.

const graph = find("graph");
const boxes = new Map([...graph.querySelectorAll(".box")].map((box) => [box.dataset.of, box]));
const paths = [...graph.querySelectorAll(".edges path")];

function reached(of, from, to) {
  const found = new Set([of]);
  for (const one of found) {
    for (const path of paths) if (path.dataset[from] === one) found.add(path.dataset[to]);
  }
  return found;
}

function choose(of) {
  const before = reached(of, "to", "from");
  const after = reached(of, "from", "to");
  graph.classList.add("chosen");
  for (const [name, box] of boxes) {
    box.classList.toggle("related", before.has(name) || after.has(name));
    box.setAttribute("aria-pressed", name === of);
  }
  for (const path of paths) {
    const { from, to } = path.dataset;
    path.classList.toggle("related", (before.has(from) && before.has(to)) || (after.has(from) && after.has(to)));
  }
  tell(values.details[of]);
}

function release() {
  graph.classList.remove("chosen");
  for (const box of boxes.values()) box.setAttribute("aria-pressed", false);
  find("details").replaceChildren(make("p", "Nothing is chosen."));
}

function tell(told) {
  const parts = [make("h3", told.name), make("p", [told.stage && `stage=${told.stage}`, told.kind].filter(Boolean).join(", "))];
  parts.push(list(told.facts));
  if (told.parents.length) {
    parts.push(make("h4", "made from"));
    const parents = list(told.parents.map(([key]) => [key, ""]));
    told.parents.forEach(([, name, of], place) => {
      const link = make("button", name, { type: "button", class: "link" });
      link.addEventListener("click", () => {
        choose(of);
        boxes.get(of).focus();
      });
      parents.querySelectorAll("dd")[place].append(link);
    });
    parts.push(parents);
  }
  for (const [title, lines] of [["metrics", told.metrics], ["settings", told.settings]]) {
    if (!lines.length) continue;
    const more = make("details");
    more.open = title === "metrics" && lines.length < 16;
    more.append(make("summary", title), list(lines));
    parts.push(more);
  }
  find("details").replaceChildren(...parts);
}

function list(lines) {
  const found = make("dl");
  for (const [name, value] of lines) found.append(make("dt", name), make("dd", value));
  return found;
}

// Where the drawing is wider than its place, its middle is seen first.
const frame = graph.parentElement;
frame.scrollLeft = (frame.scrollWidth - frame.clientWidth) / 2;

for (const [of, box] of boxes) {
  const toggle = () => (box.getAttribute("aria-pressed") === "true" ? release() : choose(of));
  box.addEventListener("click", toggle);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") release();
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    toggle();
  });
}
