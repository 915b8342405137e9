// Shared by the image inputs of the page. Each of them is a gr.HTML: `element`, `props`, `trigger` and
// `watch` are Gradio's, and props.value goes to the server with every event that has it among its inputs.

const find = (selector) => element.querySelector(selector);

const fileToUrl = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });

const urlToImage = (url) =>
  new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("not an image that this browser knows"));
    image.src = url;
  });

const isTransparent = (canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 3; i < data.length; i += 4) if (data[i] < 255) return true;
  return false;
};

// Returns the unchanged file, or a smaller one where its longer side has over `most` pixels: a JPEG on white, or a PNG
// where `keepAlpha` and the image is transparent somewhere, which may be a mask.
const readImage = async (file, most, keepAlpha = false) => {
  const url = await fileToUrl(file);
  const image = await urlToImage(url);
  const scale = most / Math.max(image.naturalWidth, image.naturalHeight);
  if (scale >= 1) return url;
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(image.naturalWidth * scale);
  canvas.height = Math.round(image.naturalHeight * scale);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (keepAlpha && isTransparent(canvas)) return canvas.toDataURL("image/png");
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.95);
};

// Calls take(files) with the files chosen in, or dropped on, the label with class "drop".
const onFiles = (take) => {
  const label = find(".drop");
  const input = find("input[type=file]");
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = "";
    take(files);
  });
  for (const name of ["dragenter", "dragover"])
    label.addEventListener(name, (event) => {
      event.preventDefault();
      label.classList.add("over");
    });
  for (const name of ["dragleave", "drop"]) label.addEventListener(name, () => label.classList.remove("over"));
  label.addEventListener("drop", (event) => {
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
};

const refuse = (text) => {
  find(".refused").textContent = text;
};
