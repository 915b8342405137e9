// The gallery and its viewer: an image enlarged with its settings; buttons to step, save, delete and reuse.

const find = (selector) => element.querySelector(selector);
const list = find(".gallery");
const dialog = find("dialog");
const image = find("dialog img");
let places = []; // "job/file" of the images to go through
let at = 0;

const addressOf = (place) => `jobs/${place.replace("/", "/files/")}`;

const refresh = async () => {
  try {
    const answer = await fetch("page/gallery", { cache: "no-store" });
    if (answer.ok) list.innerHTML = (await answer.json()).html;
  } catch {
    // the server does not answer; the panel of the job shows this
  }
};

const settingsOf = async (place) => {
  const [job, name] = place.split("/");
  const { result } = await (await fetch(`jobs/${job}`)).json();
  return result.infotexts[result.images.indexOf(name)];
};

const show = async (index) => {
  at = (index + places.length) % places.length;
  const place = places[at];
  image.src = addressOf(place);
  find(".count").textContent = places.length > 1 ? `${at + 1} of ${places.length}` : "";
  find(".save").href = image.src;
  find(".save").download = place.replace("/", "-");
  const text = await settingsOf(place).catch(() => "");
  if (place !== places[at]) return; // another image was chosen meanwhile
  find(".settings").textContent = text;
  image.alt = text.split("\n")[0];
};

const open = (button) => {
  const near = [...button.parentElement.querySelectorAll("[data-image]")];
  places = near.map((one) => one.dataset.image);
  dialog.classList.remove("enlarged");
  if (!dialog.open) dialog.showModal();
  show(near.indexOf(button));
};

const remove = async () => {
  if (!confirm("Delete this image from the disk?")) return;
  const answer = await fetch(`page/images/${places[at]}`, { method: "DELETE" });
  if (!answer.ok) return alert((await answer.json()).detail);
  places.splice(at, 1);
  dispatchEvent(new CustomEvent("sd-deleted"));
  refresh();
  if (places.length) show(Math.min(at, places.length - 1));
  else dialog.close();
};

const enlarge = () => find(".enlarge").setAttribute("aria-pressed", dialog.classList.toggle("enlarged"));
const use = (how) => {
  dialog.close();
  trigger(how, { image: places[at] });
};
const actions = {
  previous: () => show(at - 1),
  next: () => show(at + 1),
  enlarge,
  delete: remove,
  use: () => use("select"),
  start: () => use("edit"),
  close: () => dialog.close(),
};
for (const [name, action] of Object.entries(actions)) find(`dialog .${name}`).addEventListener("click", action);
image.addEventListener("click", enlarge);
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // a click outside closes
dialog.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowLeft") actions.previous();
  else if (event.key === "ArrowRight") actions.next();
  else return;
  event.preventDefault();
});
list.addEventListener("click", (event) => {
  const button = event.target.closest("[data-image]");
  if (button) open(button);
});
addEventListener("sd-view", ({ detail }) => open(detail));
addEventListener("sd-ended", refresh);
addEventListener("sd-deleted", refresh);
refresh();
