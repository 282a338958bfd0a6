// SPDX-License-Identifier: Apache-2.0
// Sets the theme that the reader has chosen, before anything is drawn.
"use strict";
try {
  const theme = localStorage.getItem("carrot-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing shows the system's theme.
}
