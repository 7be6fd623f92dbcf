// The labels and captions of pictures that lie on them, as strings.
() => {
    const boxes = image => image.checkVisibility() ? [image.getBoundingClientRect()] : [];
    const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
    const found = [];
    for (const label of document.querySelectorAll("label[data-testid=block-label], .caption-label")) {
        const box = label.getBoundingClientRect();
        if (!label.checkVisibility() || box.width < 2) continue; // for screen readers alone
        const pictures = [...label.closest("button, .block").querySelectorAll("img")].flatMap(boxes);
        if (pictures.some(picture => meet(box, picture))) found.push(label.innerText);
    }
    return found;
};
