// A click on a heading sorts its table, by numbers where cells begin with them.
for (const table of document.querySelectorAll("table"))
  for (const button of table.querySelectorAll("thead button"))
    button.addEventListener("click", () => {
      const at = button.parentNode.cellIndex, body = table.tBodies[0], down = button.dataset.down !== "1";
      const number = row => parseFloat(row.cells[at].textContent.replace("\u2212", "-").replace(/,/g, ""));
      const text = row => row.cells[at].textContent;
      const order = (a, b) => isNaN(number(a)) || isNaN(number(b))
        ? isNaN(number(a)) - isNaN(number(b)) || text(a).localeCompare(text(b)) : number(a) - number(b);
      for (const row of [...body.rows].sort((a, b) => down ? order(a, b) : order(b, a))) body.append(row);
      button.dataset.down = down ? "1" : "0";
    });
