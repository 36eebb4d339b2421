// Copying code, and the details of what is pointed at, tapped, or reached with the arrow keys inside a reply.
(() => {
  const DETAILS = "[data-details]";
  const details = Object.assign(document.createElement("div"), { className: "details", hidden: true });
  details.setAttribute("role", "tooltip");
  details.setAttribute("aria-live", "polite");
  let shown = null;

  const hide = () => {
    shown?.classList.remove("pointed");
    shown = null;
    details.hidden = true;
  };

  const show = (element) => {
    hide();
    shown = element;
    shown.classList.add("pointed");
    // Inside the page's own root, whose colours it takes.
    (document.querySelector(".gradio-container") ?? document.body).append(details);
    details.textContent = element.dataset.details;
    details.hidden = false;
    const at = element.getClientRects()[0] ?? element.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = details;
    const left = Math.min(at.left, document.documentElement.clientWidth - width - 8);
    const below = at.bottom + 6;
    details.style.left = `${Math.max(left, 8)}px`;
    details.style.top = `${below + height < innerHeight ? below : Math.max(at.top - height - 6, 8)}px`;
  };

  const step = (reply, by) => {
    const tokens = [...reply.querySelectorAll(DETAILS)];
    const next = tokens[Math.min(Math.max(tokens.indexOf(shown) + by, 0), tokens.length - 1)];
    if (!next) return;
    show(next);
    next.scrollIntoView({ block: "nearest" });
  };

  // The clipboard is there for secure pages only; a selection is there for all.
  const copy = async (button) => {
    const code = button.parentElement.querySelector("pre");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      document.execCommand("copy");
    }
    button.textContent = "Copied";
  };

  document.addEventListener("pointerover", ({ target }) => {
    const element = target.closest(DETAILS);
    if (element) show(element);
    else if (!document.activeElement?.matches(".said")) hide();
  });
  document.addEventListener("click", ({ target }) => {
    const element = target.closest(DETAILS);
    if (element) show(element); // a tap: what had the focus before has just hidden it
    else hide();
    if (target.matches(".code button")) copy(target);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || !event.target.matches?.(".said")) return;
    event.preventDefault();
    step(event.target, by);
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", hide, { passive: true, capture: true });
})();
