// The texts of a page whose contrast with what lies under them is below 4.5 to 1, as strings.
() => {
    const rgba = text => { const c = text.match(/[\d.]+/g).map(Number); return c.length < 4 ? [...c, 1] : c; };
    const over = (c, ground) => c.slice(0, 3).map((v, k) => v * c[3] + ground[k] * (1 - c[3]));
    const linear = v => v <= 10.3 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4;
    const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]) + 0.05;
    const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const parent = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
        if (!text || !parent.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
        if (!parent.getBoundingClientRect().width || ["SCRIPT", "STYLE"].includes(parent.tagName)) continue;
        let opacity = 1, ground = [255, 255, 255], above = [];
        for (let e = parent; e; e = e.parentElement) {
            opacity *= Number(getComputedStyle(e).opacity);
            above.push(rgba(getComputedStyle(e).backgroundColor));
        }
        for (const layer of above.reverse()) ground = over(layer, ground);
        const style = getComputedStyle(parent), color = rgba(parent.closest("svg") ? style.fill : style.color);
        const pair = [light(over([...color.slice(0, 3), color[3] * opacity], ground)), light(ground)];
        const contrast = Math.max(...pair) / Math.min(...pair);
        if (contrast < 4.5) found.push(`${text.slice(0, 40)}: ${contrast.toFixed(2)}`);
    }
    return found;
}
