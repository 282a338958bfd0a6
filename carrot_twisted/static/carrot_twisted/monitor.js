// SPDX-License-Identifier: Apache-2.0
// What scripts add to the monitor's pages: they stay current, and keys and local times work.
// Everything else is plain links and forms.
"use strict";
(() => {
  const stored = (name, value) => {
    try {
      if (value === undefined) return localStorage.getItem(name);
      if (value === "") localStorage.removeItem(name);
      else localStorage.setItem(name, value);
    } catch {
      // A browser that keeps nothing forgets the choice with the page.
    }
    return null;
  };

  // ---- Times: in the reader's zone, and how long ago
  const absolute = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
  const relative = new Intl.RelativeTimeFormat(document.documentElement.lang || undefined, { numeric: "auto", style: "narrow" });
  const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const ago = (seconds) => {
    for (const [unit, size] of UNITS) {
      if (Math.abs(seconds) >= size) return relative.format(Math.trunc(seconds / size), unit);
    }
    return relative.format(0, "second");
  };
  const showTimes = () => {
    for (const element of document.querySelectorAll("time[data-moment]")) {
      const when = new Date(element.dateTime);
      const text = element.dataset.moment === "absolute"
        ? absolute.format(when) : ago((when - Date.now()) / 1000);
      if (element.textContent !== text) element.textContent = text;
      element.title = absolute.format(when);
    }
    for (const element of document.querySelectorAll("[data-clock]")) {
      const text = clock.format(new Date(element.dataset.clock));
      if (element.textContent !== text) element.textContent = text;
    }
  };
  showTimes();
  setInterval(() => document.hidden || showTimes(), 1000);
  document.addEventListener("htmx:after:swap", showTimes);

  // ---- Theme
  const themeSwitch = document.getElementById("theme-switch");
  const THEMES = ["", "light", "dark"];
  const nameTheme = () => {
    const theme = document.documentElement.dataset.theme || "";
    themeSwitch.textContent = themeSwitch.dataset[theme || "auto"];
  };
  const nextTheme = () => {
    const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme || "") + 1) % THEMES.length];
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    stored("carrot-theme", theme);
    nameTheme();
  };
  if (themeSwitch) {
    themeSwitch.hidden = false;
    nameTheme();
    themeSwitch.addEventListener("click", nextTheme);
  }

  // ---- Live: ask again now and then, or when the service says that something has changed
  const live = document.getElementById("live");
  const liveSwitch = document.getElementById("live-switch");
  const isLive = () => liveSwitch && liveSwitch.getAttribute("aria-pressed") === "true";
  let due = false;
  const refresh = () => {
    if (document.hidden || !isLive()) {
      due = true;
      return;
    }
    due = false;
    live.dispatchEvent(new CustomEvent("carrot:refresh"));
  };
  const setLive = (on) => {
    liveSwitch.setAttribute("aria-pressed", String(on));
    stored("carrot-live", on ? "" : "off");
    if (on && due) refresh();
  };
  if (liveSwitch && live.dataset.refresh) {
    liveSwitch.hidden = false;
    if (stored("carrot-live") === "off") setLive(false);
    liveSwitch.addEventListener("click", () => setLive(!isLive()));
    document.addEventListener("visibilitychange", () => due && refresh());
    let told = false; // by the service, which then need not be asked so often
    let tick = 0;
    setInterval(() => {
      tick += 1;
      if (!told || tick % 10 === 0) refresh();
    }, Number(live.dataset.refresh) * 1000);
    if (live.dataset.stream) {
      const stream = new EventSource(live.dataset.stream);
      stream.addEventListener("open", () => { told = true; });
      stream.addEventListener("error", () => { told = false; });
      stream.addEventListener("changed", refresh);
      addEventListener("pagehide", () => stream.close());
    }
    // A lost server is told once, and once that it is back.
    live.addEventListener("htmx:error", () => liveSwitch.classList.add("lost"));
    live.addEventListener("htmx:after:swap", () => liveSwitch.classList.remove("lost"));
  }

  // ---- Boxes: one for all rows
  document.addEventListener("change", (event) => {
    const all = event.target.closest("input[data-all]");
    if (!all) return;
    for (const box of document.querySelectorAll("input[name=selected]")) box.checked = all.checked;
  });

  // ---- Copy: buttons that put a text of theirs into the clipboard
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = !navigator.clipboard;
    const text = button.textContent;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = button.dataset.copied;
      setTimeout(() => { button.textContent = text; }, 1500);
    });
  }

  // ---- Follow: the end of a log that grows stays in view, until the reader scrolls up
  let follows = true;
  const showFollowing = () => {
    const button = document.getElementById("follow");
    if (!button) return;
    button.hidden = false;
    button.setAttribute("aria-pressed", String(follows));
    const log = document.getElementById("log-lines");
    if (follows && log) log.scrollTop = log.scrollHeight;
  };
  const setFollowing = (on) => {
    follows = on;
    showFollowing();
  };
  showFollowing();
  document.addEventListener("htmx:after:swap", showFollowing);
  document.addEventListener("click", (event) => event.target.closest("#follow") && setFollowing(!follows));
  document.addEventListener("scroll", (event) => {
    const log = event.target;
    if (log.id === "log-lines" && log.scrollHeight - log.scrollTop - log.clientHeight > 40) setFollowing(false);
  }, true);

  // ---- Long work goes on by itself
  document.querySelector("button[data-go-on]")?.click();

  // ---- Keys
  const help = document.getElementById("help");
  const helpSwitch = document.getElementById("help-switch");
  helpSwitch.hidden = false;
  helpSwitch.addEventListener("click", () => help.showModal());
  const rows = () => [...document.querySelectorAll("table.rows tbody tr")].filter((row) => row.querySelector("a"));
  const move = (step) => {
    const all = rows();
    const at = all.findIndex((row) => row.contains(document.activeElement));
    const next = all[at === -1 ? 0 : Math.min(Math.max(at + step, 0), all.length - 1)];
    next?.querySelector("a").focus();
  };
  const KEYS = {
    "/": () => document.querySelector("input[type=search]")?.focus(),
    j: () => move(1),
    k: () => move(-1),
    x: () => document.activeElement.closest("tr")?.querySelector("input[name=selected]")?.click(),
    l: () => liveSwitch && setLive(!isLive()),
    t: nextTheme,
    "?": () => help.showModal(),
  };
  let going = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.target.closest("input, select, textarea, [contenteditable]") && event.target.type !== "checkbox") return;
    if (event.key === "g") {
      going = Date.now();
      return;
    }
    if (Date.now() - going < 1500 && /^[1-9]$/.test(event.key)) {
      document.querySelectorAll("header nav a")[Number(event.key) - 1]?.click();
      return;
    }
    const action = KEYS[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
})();
