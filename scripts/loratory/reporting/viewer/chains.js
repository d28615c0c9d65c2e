// Draws each folded chain by its pLDDT, with the known chain that is nearest to it in grey.
const COLOURS = [[90, "#0053d6"], [70, "#65cbf3"], [50, "#ffdb13"], [0, "#ff7d45"]];
const colour = plddt => COLOURS.find(([least]) => plddt >= least)?.[1] ?? "#ff7d45";
for (const key of document.querySelectorAll(".plddt")) key.style.color = colour(Number(key.dataset.from));
for (const chain of document.querySelectorAll(".chain")) {
  const stage = chain.querySelector(".stage"), data = JSON.parse(chain.querySelector("script").textContent);
  try {
    const viewer = $3Dmol.createViewer(stage);
    viewer.addModel(data.model, "pdb").setStyle({}, { cartoon: { colorfunc: atom => colour(atom.b) } });
    if (data.reference) viewer.addModel(data.reference, "pdb").setStyle({}, { cartoon: { color: "#888888", style: "trace" } });
    viewer.setBackgroundColor("white", 0);
    viewer.zoomTo();
    viewer.render();
  } catch (error) {
    stage.textContent = "No picture: this browser draws no WebGL.";
  }
}
