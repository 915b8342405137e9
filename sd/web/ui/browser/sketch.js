// Painting an image, white on black, for the list of images beside it. It has the size that the form asks for.

const SIDE = 512; // pixels: a smaller canvas is enlarged to this
const KEPT = 30; // strokes that can be undone
const board = find(".sketch");
const canvas = find("canvas");
const painting = canvas.getContext("2d");
let shown = ""; // the painting as it is, a data: URL
let before = []; // the paintings before each stroke

const fit = () => {
  const [width, height] = sd.size || [SIDE, SIDE];
  const scale = Math.max(1, SIDE / Math.max(width, height, 1));
  canvas.width = Math.round(width * scale) || SIDE; // this clears it
  canvas.height = Math.round(height * scale) || SIDE;
};
// Shows the masks of the other regions in gray below the painting, which does not have them.
const showOthers = () => {
  if (props.store !== "regions" || !props.value.length) {
    canvas.style.background = "black";
    return;
  }
  const dim = "linear-gradient(rgb(0 0 0 / 65%), rgb(0 0 0 / 65%))";
  canvas.style.background = [dim, ...props.value.map((url) => `url("${url}") 0 0 / 100% 100%`)].join(", ");
  canvas.style.backgroundBlendMode = ["normal", ...props.value.map(() => "lighten")].join(", ");
};
const enable = () => {
  find(".undo").disabled = !before.length;
};
const remember = (url) => {
  before = [...before, shown].slice(-KEPT);
  shown = url;
  enable();
};
const restart = () => {
  shown = "";
  before = [];
  fit();
  enable();
};

find(".paint").addEventListener("click", () => {
  board.hidden = !board.hidden;
  find(".paint").ariaExpanded = String(!board.hidden);
  if (!board.hidden && !shown) restart();
});
find(".undo").addEventListener("click", async () => {
  shown = before.pop() || "";
  painting.clearRect(0, 0, canvas.width, canvas.height);
  if (shown) painting.drawImage(await urlToImage(shown), 0, 0);
  enable();
});
find(".clear").addEventListener("click", () => {
  painting.clearRect(0, 0, canvas.width, canvas.height);
  remember("");
  refuse("");
});
find(".take").addEventListener("click", () => {
  if (isEmpty(canvas)) {
    refuse("Nothing is painted yet.");
    return;
  }
  refuse("");
  painting.globalCompositeOperation = "destination-over";
  painting.fillStyle = "black";
  painting.fillRect(0, 0, canvas.width, canvas.height);
  set([...props.value, canvas.toDataURL("image/png")]);
  showOthers();
  painting.globalCompositeOperation = "source-over";
  restart();
});
addEventListener("sd-submitted", ({ detail }) => {
  if (detail !== "teach" && shown) refuse('This painting is not added yet and takes no part: press "Add the painting".');
});
watch("value", showOthers);
showOthers();
paintStrokes(canvas, "white", () => remember(isEmpty(canvas) ? "" : canvas.toDataURL("image/png")));
