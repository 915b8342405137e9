// Several images, such as those to train on. props.value: data: URLs. props.store: where the browser keeps them.

const MOST = 1024; // pixels; a model learns from fewer
const list = find("ul");

const show = () => {
  list.replaceChildren(
    ...props.value.map((url, index) => {
      const item = document.createElement("li");
      const image = document.createElement("img");
      image.src = url;
      image.alt = `Image ${index + 1}`;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "×";
      button.ariaLabel = `Remove image ${index + 1}`;
      button.addEventListener("click", () => {
        set(props.value.filter((_, other) => other !== index));
      });
      item.append(image, button);
      return item;
    }),
  );
};

const set = (urls) => {
  props.value = urls;
  sd.store(props.store, urls);
  show();
};

onFiles(async (files) => {
  const refused = [];
  for (const file of files)
    try {
      set([...props.value, await readImage(file, MOST, true)]);
    } catch {
      refused.push(file.name);
    }
  refuse(refused.length ? `Not images that this browser knows: ${refused.join(", ")}.` : "");
});
watch("value", () => {
  sd.store(props.store, props.value); // the form was reset: a reload would bring the images back
  show();
});
if (sd.stored(props.store)?.length) props.value = sd.stored(props.store);
show();
