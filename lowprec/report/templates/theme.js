"use strict";
// Light or dark as the system says until the button says otherwise; the choice is kept where it can be.
function storedTheme() {
  try {
    return localStorage.getItem("lowprec-theme");
  } catch {
    return null;
  }
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("lowprec-theme", theme);
  } catch {
    // Pages opened from a disk may have no storage: the choice lasts as long as the page.
  }
}

if (typeof document !== "undefined") {
  const stored = storedTheme();
  if (stored === "dark" || stored === "light") {
    document.documentElement.dataset.theme = stored;
  }
  addEventListener("DOMContentLoaded", () => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "theme";
    const show = () => {
      button.textContent = isDark() ? "Light" : "Dark";
      button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    };
    button.addEventListener("click", () => {
      setTheme(isDark() ? "light" : "dark");
      show();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
    show();
    document.querySelector("header").prepend(button);
  });
}
