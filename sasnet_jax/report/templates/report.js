"use strict";
const map = document.querySelector(".map");
if (map) {
  const reviews = JSON.parse(document.getElementById("map-reviews").textContent);
  const reading = map.querySelector(".reading");
  const pictures = [...map.querySelectorAll("svg")];

  for (const input of map.querySelectorAll("input")) {
    input.addEventListener("change", () => {
      if (input.name === "colors") map.dataset.colors = input.value;
      else for (const one of map.querySelectorAll("[data-picture]")) {
        one.toggleAttribute("hidden", one.dataset.picture !== input.value);
      }
    });
  }

  // The nearest point within reach of a finger, in the picture's own units.
  function nearest(picture, event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
    let found = -1, least = 24 ** 2;
    picture.querySelectorAll("circle").forEach((circle, index) => {
      const distance = (circle.cx.baseVal.value - at.x) ** 2 + (circle.cy.baseVal.value - at.y) ** 2;
      if (distance < least) { least = distance; found = index; }
    });
    return found;
  }

  function read(index) {
    for (const one of map.querySelectorAll(".chosen")) { one.classList.remove("chosen"); one.setAttribute("r", 4); }
    for (const picture of pictures) {
      const circle = picture.querySelectorAll("circle")[index];
      circle.classList.add("chosen");
      circle.setAttribute("r", 7);
    }
    const review = reviews[index];
    if (!review) return;
    // textContent: a review is text, whatever it holds.
    reading.querySelector("b").textContent = review.stars + " ★, " + review.label;
    reading.querySelector("small").textContent = [review.category, review.split].filter(Boolean).join(" · ");
    reading.querySelector("p").textContent = review.text;
  }

  for (const picture of pictures) {
    for (const kind of ["pointermove", "click"]) {
      picture.addEventListener(kind, (event) => {
        const index = nearest(picture, event);
        if (index >= 0) read(index);
      });
    }
  }
}
