// What Gradio leaves to a page: arrow keys between tabs, progress that is spoken, results that come into view.

const TABS = "[role=tab]", SPOKEN_EVERY = 3000; // milliseconds

document.addEventListener("keydown", event => {
    const tab = event.target.closest?.(TABS), step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!tab || (!step && !["Home", "End"].includes(event.key))) return;
    const tabs = [...tab.closest("[role=tablist]").querySelectorAll(TABS)].filter(other => other.checkVisibility());
    const next = event.key === "Home" ? 0 : event.key === "End" ? -1 : (tabs.indexOf(tab) + step) % tabs.length;
    event.preventDefault();
    tabs.at(next).focus();
    tabs.at(next).click();
});

// One region for all tabs speaks what their status says, not each of three changes a second.
const region = document.createElement("div");
region.id = "spoken";
region.setAttribute("role", "status");
region.setAttribute("aria-live", "polite");
setInterval(() => {
    if (!region.isConnected) document.body.append(region);
    const shown = [...document.querySelectorAll(".block.progress")].filter(status => status.checkVisibility());
    const text = shown.map(status => status.innerText.trim()).join(" ");
    if (text !== region.textContent) region.textContent = text;
}, SPOKEN_EVERY);

// Scrolls, where there is no room for settings and result at once.
function showResult() {
    const result = [...document.querySelectorAll(".results")].find(column => column.checkVisibility());
    const box = result?.getBoundingClientRect();
    if (box && (box.top < 0 || box.top > 0.4 * innerHeight)) result.scrollIntoView({ behavior: "smooth", block: "start" });
}

// The states at one time of every strip, t = 0 first, of `columns`.
function showTime(t, columns) {
    document.documentElement.style.setProperty("--column", Math.round(t * (columns - 1)));
}
