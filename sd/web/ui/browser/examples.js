// Prompts to try: a press on one puts it into the form.

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("select", { prompt: button.textContent });
});
