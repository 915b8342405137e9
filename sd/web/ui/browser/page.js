// Loaded before the page is built: the name of this page, its form over a reload, and its keys.

window.sd = (() => {
  const random = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const get = (storage, key) => {
    try {
      return storage.getItem(key);
    } catch {
      return null; // storage is disabled
    }
  };
  const set = (storage, key, value) => {
    try {
      storage.setItem(key, value);
    } catch {
      storage.removeItem(key); // the storage is full: better nothing than an old value
    }
  };

  // A tab's own name once it has submitted a job; until then that of the last tab that did, so that a browser
  // opened anew finds its jobs again.
  const page = (kind) => get(sessionStorage, `sd-page-${kind}`) || get(localStorage, `sd-page-${kind}`) || "";
  const submitter = (kind) => {
    const own = get(sessionStorage, `sd-page-${kind}`) || random();
    set(sessionStorage, `sd-page-${kind}`, own);
    set(localStorage, `sd-page-${kind}`, own);
    dispatchEvent(new CustomEvent("sd-submitted", { detail: kind }));
    return own;
  };

  const store = (key, value) => set(sessionStorage, `sd-${key}`, JSON.stringify(value));
  const stored = (key) => JSON.parse(get(sessionStorage, `sd-${key}`) || "null");

  // A form's values by name: those of this tab, else those that any tab had last.
  const ready = new Set();
  const save = (key, names, values) => {
    if (!ready.has(key)) return; // while the page is built its fields change to their defaults
    const text = JSON.stringify(Object.fromEntries(names.map((name, i) => [name, values[i]])));
    for (const storage of [sessionStorage, localStorage]) set(storage, `sd-form-${key}`, text);
  };
  const restore = (key, names, values) => {
    ready.add(key);
    const text = get(sessionStorage, `sd-form-${key}`) || get(localStorage, `sd-form-${key}`);
    const found = JSON.parse(text || "{}");
    return names.map((name, i) => (name in found ? found[name] : values[i]));
  };

  // Gradio's update of an accordion: open, where a value inside differs from its default.
  const opened = (values, defaults) => {
    const isUsed = values.some((value, i) => JSON.stringify(value) !== JSON.stringify(defaults[i]));
    return isUsed ? { __type__: "update", open: true } : { __type__: "update" };
  };

  const isVisible = (element) => element && element.getClientRects().length > 0;
  const scrollTo = (element) => {
    const box = element.getBoundingClientRect();
    if (box.top >= 0 && box.top < innerHeight * 0.6) return;
    element.scrollIntoView({ block: "start" }); // at once: what changes on the page would end a smooth way there
  };

  addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || document.querySelector("dialog[open]")) return;
    const button = ["generate", "look", "train"].map((id) => document.getElementById(id)).find(isVisible);
    if (!button) return;
    event.preventDefault();
    button.click();
  });

  return { page, submitter, store, stored, save, restore, opened, scrollTo };
})();
