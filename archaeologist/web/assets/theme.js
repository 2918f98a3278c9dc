// Dark or light: the system's, unless the reader chose.

const CHOICE = "archaeologist-theme";
const system = matchMedia("(prefers-color-scheme: light)");
const root = document.documentElement;

const chosen = () => {
  const found = localStorage.getItem(CHOICE);
  return found === "dark" || found === "light" ? found : null;
};

export const theme = () => chosen() ?? (system.matches ? "light" : "dark");

function apply() {
  if (chosen()) root.dataset.theme = chosen();
  else delete root.dataset.theme;
  document.dispatchEvent(new Event("themechange"));
}

// Not every document has the switch.
const select = document.getElementById("theme");
if (select) select.value = chosen() ?? "system";
select?.addEventListener("change", () => {
  if (select.value === "system") localStorage.removeItem(CHOICE);
  else localStorage.setItem(CHOICE, select.value);
  apply();
});
system.addEventListener("change", apply);
apply();
