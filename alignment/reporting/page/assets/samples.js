// Samples side by side: two speakers, the prompts that both answered, by tag and by what is searched for.

const { prompts, said } = values.texts;
const A_PAGE = 12;

if (find("said")) {
  const left = find("left"), right = find("right"), tag = find("tag"), search = find("search");
  const groups = [...new Set(said.map((one) => one.group))];
  for (const select of [left, right]) {
    for (const group of groups) {
      const found = make("optgroup", "", { label: group });
      said.forEach((one, place) => one.group === group && found.append(make("option", one.name, { value: place })));
      select.append(found);
    }
  }
  const tags = [...new Set(Object.values(prompts).flatMap((one) => one.tags))].sort();
  fill(tag, [["", "all"], ...tags.map((one) => [one, one])]);
  left.value = said.length > 1 ? 1 : 0;
  right.value = 0;
  let shown = A_PAGE;

  const answer = (speaker, key, same) => {
    const { text, scores, tokens, finished } = speaker.answers[key];
    const cell = make("div", "", { class: same ? "said same" : "said" });
    const line = make("div", "", { class: "scores" });
    for (const [name, value] of scores) {
      const score = make("span", `${name} `);
      score.append(make("b", String(value)));
      line.append(score);
    }
    if (tokens !== undefined) line.append(make("span", `${tokens} tokens${finished ? "" : ", did not end"}`));
    cell.append(make("p", speaker.name, { class: "who" }), make("p", text || "(nothing)", { class: "text" }), line);
    return cell;
  };

  const pair = (key, a, b) => {
    const row = make("article", "", { class: "pair" });
    const asked = make("div");
    for (const [role, content] of prompts[key].turns) {
      const turn = make("p", "", { class: "turn" });
      turn.append(make("b", role), content);
      asked.append(turn);
    }
    asked.append(make("div", prompts[key].tags.join(", "), { class: "tags" }));
    row.append(asked, answer(a, key, false), answer(b, key, a !== b && a.answers[key].text === b.answers[key].text));
    return row;
  };

  const compare = () => {
    const a = said[left.value], b = said[right.value];
    const wanted = search.value.toLowerCase();
    const both = Object.keys(prompts).filter((key) => key in a.answers && key in b.answers);
    const fits = both.filter((key) => {
      const texts = [...prompts[key].turns.map((turn) => turn[1]), a.answers[key].text, b.answers[key].text];
      return (!tag.value || prompts[key].tags.includes(tag.value)) &&
        (!find("differ").checked || a.answers[key].text !== b.answers[key].text) &&
        (!wanted || texts.some((text) => text.toLowerCase().includes(wanted)));
    });
    find("said").replaceChildren(...fits.slice(0, shown).map((key) => pair(key, a, b)));
    find("found").value = both.length ? counted(fits.length, both.length, "prompts") : "no prompt that both answered";
    find("more").hidden = fits.length <= shown;
  };
  const again = () => { shown = A_PAGE; compare(); };
  for (const control of [left, right, tag, search, find("differ")]) control.addEventListener("input", again);
  find("more").addEventListener("click", () => { shown += A_PAGE; compare(); });
  compare();
}
