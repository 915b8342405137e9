// An image whose settings are wanted. props.value: a data: URL of the file as it is, for a smaller one has none.

onFiles(async ([file]) => {
  if (!file) return;
  props.value = await fileToUrl(file);
  trigger("upload", { name: file.name });
});
