// What a field means: shown where the pointer or the keyboard is on its name, with a link to where more is said.

import { read } from "./api.js";
import { byId, make } from "./dom.js";

// Sections of the page on the statistics.
export const DRIFT = ["weight-drift"];
export const WEIGHTS = ["weight-health"];
export const ACTIVATIONS = ["activations", "representation"];

const GAP = 8; // pixels
const box = byId("meaning");
const known = await read("/assets/definitions.json").catch(() => ({}));

// A field's name as a link to its definition in the first of these sections that has one; else as text.
export function term(sections, field, words = field.replaceAll("_", " ")) {
  const found = sections.map((section) => known[section]?.[field]).find(Boolean);
  if (!found) return words;
  const link = make("a", { class: "term", href: found.address, target: "_blank", "aria-describedby": box.id }, words);
  const show = () => place(link, found.text);
  for (const kind of ["mouseenter", "focus"]) link.addEventListener(kind, show);
  for (const kind of ["mouseleave", "blur"]) link.addEventListener(kind, hide);
  return link;
}

// In the top layer, so that neither a dialog nor a scrolled table cuts it off.
function place(link, text) {
  box.textContent = text;
  if (!isOpen()) box.showPopover();
  const { left, bottom, top } = link.getBoundingClientRect();
  const { width, height } = box.getBoundingClientRect();
  const isBelow = bottom + GAP + height < innerHeight;
  box.style.left = `${Math.max(GAP, Math.min(left, innerWidth - width - GAP))}px`;
  box.style.top = `${isBelow ? bottom + GAP : Math.max(GAP, top - GAP - height)}px`;
}

const isOpen = () => box.matches(":popover-open");

function hide() {
  if (isOpen()) box.hidePopover();
}

addEventListener("keydown", (event) => event.key === "Escape" && hide());
addEventListener("scroll", hide, { capture: true, passive: true });
