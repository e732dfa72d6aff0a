for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    const number = (row) => Number.parseFloat(row.cells[place].dataset.value);
    const order = (a, b) => {
      const [left, right] = [number(a), number(b)];
      if (Number.isNaN(left) && Number.isNaN(right)) {
        return sign * a.cells[place].textContent.localeCompare(b.cells[place].textContent);
      }
      if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) ? 1 : -1;
      return sign * (left - right);
    };
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    body.append(...[...body.rows].sort(order));
  }));
}
