// The details of what is pointed at, tapped, or reached with the arrow keys inside a reply.

import { create } from "./dom.js";

const DETAILS = "[data-details]";
const details = create("div", { class: "details", role: "tooltip", "aria-live": "polite", hidden: "" });
let shown = null;

function hide() {
  shown?.classList.remove("pointed");
  shown = null;
  details.hidden = true;
}

function show(element) {
  hide();
  shown = element;
  shown.classList.add("pointed");
  details.textContent = element.dataset.details;
  details.hidden = false;
  const at = element.getClientRects()[0] ?? element.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = details;
  const left = Math.min(at.left, document.documentElement.clientWidth - width - 8);
  const below = at.bottom + 6;
  details.style.left = `${Math.max(left, 8)}px`;
  details.style.top = `${below + height < innerHeight ? below : Math.max(at.top - height - 6, 8)}px`;
}

function step(reply, by) {
  const tokens = [...reply.querySelectorAll(DETAILS)];
  const next = tokens[Math.min(Math.max(tokens.indexOf(shown) + by, 0), tokens.length - 1)];
  if (!next) return;
  next.scrollIntoView({ block: "nearest" });
  show(next);
}

export function showDetails() {
  document.body.append(details);
  document.addEventListener("pointerover", ({ target }) => {
    const element = target.closest(DETAILS);
    if (element) show(element);
    else if (!document.activeElement?.matches(".said")) hide();
  });
  document.addEventListener("click", ({ target }) => {
    const element = target.closest(DETAILS);
    if (element) show(element); // a tap: what had the focus before has just hidden it
    else hide();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || !event.target.matches?.(".said")) return;
    event.preventDefault();
    step(event.target, by);
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("wheel", hide, { passive: true });
  document.addEventListener("touchmove", hide, { passive: true });
}
