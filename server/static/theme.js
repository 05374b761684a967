// Light, dark, or what the system says; remembered in this browser.

const STORE = "diffusiongpt-theme";
const THEMES = ["system", "light", "dark"];

export function applyTheme() {
  const kept = localStorage.getItem(STORE);
  const theme = THEMES.includes(kept) ? kept : "system";
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  return theme;
}

export function nextTheme() {
  const next = THEMES[(THEMES.indexOf(applyTheme()) + 1) % THEMES.length];
  localStorage.setItem(STORE, next);
  return applyTheme();
}
