// Pictures to learn from. props.value: data: URLs.

const MOST = 1024; // pixels; a model learns from fewer
const list = find("ul");

const show = () => {
  list.replaceChildren(
    ...props.value.map((url, index) => {
      const item = document.createElement("li");
      const image = document.createElement("img");
      image.src = url;
      image.alt = `Picture ${index + 1}`;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "×";
      button.ariaLabel = `Remove picture ${index + 1}`;
      button.addEventListener("click", () => {
        props.value = props.value.filter((_, other) => other !== index);
        show();
      });
      item.append(image, button);
      return item;
    }),
  );
};

onFiles(async (files) => {
  const refused = [];
  for (const file of files)
    try {
      props.value = [...props.value, await readPicture(file, MOST)];
      show();
    } catch {
      refused.push(file.name);
    }
  refuse(refused.length ? `Not pictures that this browser knows: ${refused.join(", ")}.` : "");
});
watch("value", show);
show();
