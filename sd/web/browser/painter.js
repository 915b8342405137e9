// A picture to start from, and a brush for what is to be drawn anew. props.value: {picture, mask}, data: URLs or "".
// The mask's file is transparent where the picture stays.

const MOST = 2048; // pixels
const canvas = find("canvas");
const painting = canvas.getContext("2d");
const brush = find("input[type=range]");
const picture = find("img");
let stroke = null; // where the brush is, while it is down

const show = async () => {
  const value = props.value || {};
  find(".drop").hidden = Boolean(value.picture);
  find(".board").hidden = !value.picture;
  if (!value.picture) return;
  const image = await urlToImage(value.picture);
  picture.src = value.picture;
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  if (value.mask) painting.drawImage(await urlToImage(value.mask), 0, 0, canvas.width, canvas.height);
};

const tellSize = () => trigger("upload", { width: canvas.width, height: canvas.height });

const place = (event) => {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
};

const paintTo = (to) => {
  painting.lineCap = "round";
  painting.lineWidth = (brush.value / 100) * Math.max(canvas.width, canvas.height);
  painting.strokeStyle = "#2563eb";
  painting.beginPath();
  painting.moveTo(stroke.x, stroke.y);
  painting.lineTo(to.x, to.y);
  painting.stroke();
  stroke = to;
};

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  stroke = place(event);
  paintTo(stroke);
});
canvas.addEventListener("pointermove", (event) => stroke && paintTo(place(event)));
for (const name of ["pointerup", "pointercancel"])
  canvas.addEventListener(name, () => {
    if (!stroke) return;
    stroke = null;
    props.value = { picture: props.value.picture, mask: canvas.toDataURL("image/png") };
  });

find(".clear").addEventListener("click", () => {
  painting.clearRect(0, 0, canvas.width, canvas.height);
  props.value = { picture: props.value.picture, mask: "" };
});
find(".remove").addEventListener("click", () => {
  props.value = { picture: "", mask: "" };
  show();
});

onFiles(async ([file]) => {
  if (!file) return;
  try {
    props.value = { picture: await readPicture(file, MOST), mask: "" };
    refuse("");
    await show();
    tellSize();
  } catch (error) {
    refuse(`${file.name}: ${error.message}.`);
  }
});
watch("value", show);
show();
