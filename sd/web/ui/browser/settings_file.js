// An image to read settings from. props.value: a data: URL of the unchanged file; a resized one has no settings.

onFiles(async ([file]) => {
  if (!file) return;
  props.value = await fileToUrl(file);
  trigger("upload", { name: file.name });
});
