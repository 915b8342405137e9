// Example prompts: a click on one copies it to the form.

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("select", { prompt: button.textContent });
});
