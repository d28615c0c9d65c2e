// Draws each folded chain by its pLDDT, with the known chain that is nearest to it in grey.
const COLOURS = [[90, "#0053d6"], [70, "#65cbf3"], [50, "#ffdb13"], [0, "#ff7d45"]];
const colour = plddt => COLOURS.find(([least]) => plddt >= least)?.[1] ?? "#ff7d45";
const paper = () => "0x" + getComputedStyle(document.body).backgroundColor.match(/\d+/g).slice(0, 3)
  .map(part => Number(part).toString(16).padStart(2, "0")).join("");
const viewers = [];
for (const key of document.querySelectorAll(".plddt")) key.style.color = colour(Number(key.dataset.from));
for (const chain of document.querySelectorAll(".chain")) {
  const stage = chain.querySelector(".stage"), data = JSON.parse(chain.querySelector("script").textContent);
  try {
    const viewer = $3Dmol.createViewer(stage, { backgroundColor: paper() });
    viewer.addModel(data.model, "pdb").setStyle({}, { cartoon: { colorfunc: atom => colour(atom.b) } });
    if (data.reference) viewer.addModel(data.reference, "pdb").setStyle({}, { cartoon: { color: "#888888", style: "trace" } });
    viewer.zoomTo();
    viewer.zoom(1.3);
    viewer.render();
    viewers.push(viewer);
  } catch (error) {
    stage.textContent = "No picture: this browser draws no WebGL.";
  }
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => viewers.forEach(viewer => viewer.setBackgroundColor(paper())));
