// An image to start from, and a brush for the mask. props.value: {image, mask}, data: URLs or "".
// The mask's file is transparent where the image stays.

const MOST = 2048; // pixels
const REMEMBERED = 30; // strokes that can be undone
const canvas = find("canvas");
const painting = canvas.getContext("2d");
const baseImage = find(".layers img");
let before = []; // the masks before each stroke

const show = async () => {
  const value = props.value || {};
  find(".drop").hidden = Boolean(value.image);
  find(".board").hidden = !value.image;
  find(".undo").disabled = !before.length;
  if (!value.image) return;
  const image = await urlToImage(value.image);
  baseImage.src = value.image;
  canvas.width = image.naturalWidth; // this clears it
  canvas.height = image.naturalHeight;
  if (value.mask) painting.drawImage(await urlToImage(value.mask), 0, 0, canvas.width, canvas.height);
};

const set = (image, mask) => {
  props.value = { image, mask };
  sd.store("start", props.value);
};
const change = (mask) => {
  before = [...before, props.value.mask].slice(-REMEMBERED);
  find(".undo").disabled = false;
  set(props.value.image, mask);
};
const sendSize = () => trigger("upload", { width: canvas.width, height: canvas.height });

paintStrokes(canvas, "#2563eb", () => change(isEmpty(canvas) ? "" : canvas.toDataURL("image/png")));

find(".undo").addEventListener("click", () => {
  set(props.value.image, before.pop() || "");
  show();
});
find(".clear").addEventListener("click", () => {
  painting.clearRect(0, 0, canvas.width, canvas.height);
  change("");
});
find(".remove").addEventListener("click", () => {
  before = [];
  set("", "");
  show();
  trigger("upload", { width: 0, height: 0 });
});

onFiles(async ([file]) => {
  if (!file) return;
  try {
    before = [];
    set(await readImage(file, MOST), "");
    refuse("");
    await show();
    sendSize();
  } catch (error) {
    refuse(`${file.name}: ${error.message}.`);
  }
});
watch("value", () => {
  sd.store("start", props.value);
  show();
});
if (sd.stored("start")?.image) props.value = sd.stored("start");
show();
