// A click on one of the pictures shown.

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-picture]");
  if (button) trigger("select", { picture: button.dataset.picture });
});
