// The ranking: sorted by what is clicked, filtered by name, stage and evaluation. Rows without a value come last.

const ranking = find("ranking");

if (ranking) {
  const heads = [...ranking.tHead.rows[0].cells];
  const body = ranking.tBodies[0];
  const rows = [...body.rows];
  const place = (key) => heads.findIndex((head) => head.dataset.key === key);
  const cell = (row, key) => row.cells[place(key)].dataset.value;

  const sort = (head) => {
    const number = head.dataset.kind === "number";
    const first = number ? "descending" : "ascending";
    const other = number ? "ascending" : "descending";
    const way = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((one) => one.setAttribute("aria-sort", one === head ? way : "none"));
    const sign = way === "ascending" ? 1 : -1;
    const at = heads.indexOf(head);
    const value = (row) => row.cells[at].dataset.value;
    const compare = (a, b) => {
      if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
      return sign * (number ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b), "en", { numeric: true }));
    };
    body.append(...[...body.rows].sort(compare));
  };
  heads.forEach((head) => head.querySelector("button").addEventListener("click", () => sort(head)));

  const choices = { stage: find("filter-stage"), evaluation: find("filter-evaluation") };
  for (const [key, select] of Object.entries(choices)) {
    const found = [...new Set(rows.map((row) => cell(row, key)))];
    fill(select, found.map((one) => [one, one]));
    select.parentElement.hidden = found.length < 2;
    if (found.length < 2) select.parentElement.style.display = "none";
  }
  const filter = () => {
    const name = find("filter-name").value.toLowerCase();
    for (const row of rows) {
      const fits = Object.entries(choices).every(([key, select]) => !select.value || cell(row, key) === select.value);
      row.hidden = !(fits && cell(row, "name").toLowerCase().includes(name));
    }
    find("shown").value = counted(rows.filter((row) => !row.hidden).length, rows.length, "rows");
  };
  for (const control of [find("filter-name"), ...Object.values(choices)]) control.addEventListener("input", filter);
  filter();
}
