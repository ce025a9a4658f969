// A candidate's and a baseline's answers to each prompt, with what was said of them: by result, tag and search.

const { names, rows } = values.examples;
const A_PAGE = 12;

const cell = (side, row) => {
  const one = row[side];
  const found = make("div", "", { class: row.result === "tie" && row.why ? "said same" : "said" });
  const line = make("div", "", { class: "scores" });
  for (const [name, value] of one.scores) {
    const score = make("span", `${name} `);
    score.append(make("b", String(value)));
    line.append(score);
  }
  found.append(make("p", `${names[side]} (${side})`, { class: "who" }), make("p", one.text || "(nothing)", { class: "text" }), line);
  return found;
};

const article = (row) => {
  const asked = make("div");
  asked.append(make("p", row.result + (row.why ? `: ${row.why}` : row.grade ? `, ${row.grade}` : ""), { class: "result" }));
  for (const [role, content] of row.turns) {
    const turn = make("p", "", { class: "turn" });
    turn.append(make("b", role), content);
    asked.append(turn);
  }
  asked.append(make("div", row.tags.join(", "), { class: "tags" }));
  const found = make("article", "", { class: "pair" });
  found.append(asked, cell("candidate", row), cell("baseline", row));
  if (row.voices.length) {
    const said = make("div", "", { class: "voices" });
    for (const [who, told, reason] of row.voices) {
      const voice = make("p", "", { class: "turn" });
      voice.append(make("b", `${who}: ${told}`), reason);
      said.append(voice);
    }
    found.append(said);
  }
  return found;
};

const result = find("result"), tag = find("tag"), search = find("search");
const ofResults = [...new Set(rows.map((row) => row.result))];
fill(result, [["", "all"], ...ofResults.map((one) => [one, one])]);
fill(tag, [["", "all"], ...[...new Set(rows.flatMap((row) => row.tags))].sort().map((one) => [one, one])]);
let shown = A_PAGE;

const choose = () => {
  const wanted = search.value.toLowerCase();
  const fits = rows.filter((row) => {
    const texts = [...row.turns.map((turn) => turn[1]), row.candidate.text, row.baseline.text, ...row.voices.map((one) => one[2])];
    return (!result.value || row.result === result.value) && (!tag.value || row.tags.includes(tag.value)) &&
      (!wanted || texts.some((text) => text.toLowerCase().includes(wanted)));
  });
  find("said").replaceChildren(...fits.slice(0, shown).map(article));
  find("found").value = counted(fits.length, rows.length, "pairs");
  find("more").hidden = fits.length <= shown;
};
const again = () => { shown = A_PAGE; choose(); };
for (const control of [result, tag, search]) control.addEventListener("input", again);
find("more").addEventListener("click", () => { shown += A_PAGE; choose(); });
choose();
