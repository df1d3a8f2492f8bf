"use strict";
(() => {
  const tip = document.body.appendChild(document.createElement("div"));
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  // Browsers show a title after a second, and never on a touch screen.
  for (const title of document.querySelectorAll("svg title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  for (const item of document.querySelectorAll(".flow li[title]")) {
    item.dataset.tip = item.title;
    item.removeAttribute("title");
  }
  const show = (event) => {
    const marked = event.target.closest?.("[data-tip]");
    tip.style.display = marked ? "block" : "none";
    if (!marked) return;
    tip.textContent = marked.dataset.tip;
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 14, innerWidth - width - 8);
    const above = event.clientY - height - 12;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 8 ? above : event.clientY + 18}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  addEventListener("scroll", () => { tip.style.display = "none"; }, { capture: true, passive: true });

  for (const box of document.querySelectorAll(".sortable")) {
    const body = box.querySelector("tbody");
    const rows = [...body.rows];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const heads = [...box.querySelectorAll("th")];
    const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent;
    heads.forEach((head, column) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const number = head.dataset.kind === "number";
        // The largest numbers and the first names come first.
        const first = number && column > 0 ? "descending" : "ascending";
        const second = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? second : first;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const compare = number
          ? (a, b) => value(a, column) - value(b, column)
          : (a, b) => value(a, column).localeCompare(value(b, column), "en", { numeric: true });
        body.append(...[...rows].sort((a, b) => sign * compare(a, b)));
      });
    });
    const field = box.querySelector("input");
    const count = box.querySelector("output");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().replace(/(\d)x(?=\d)/g, "$1×").split(/\s+/);
      let shown = 0;
      rows.forEach((row, index) => {
        row.hidden = !words.every((word) => texts[index].includes(word));
        shown += !row.hidden;
      });
      const all = `${rows.length} ${count.dataset.noun}`;
      count.textContent = shown === rows.length ? all : `${shown} of ${all}`;
    });
  }
})();
