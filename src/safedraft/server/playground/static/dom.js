// Elements are made here; every text is a text node, whatever it looks like.

const SVG = "http://www.w3.org/2000/svg";

export const find = (id) => document.getElementById(id);

export const create = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const draw = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function fill(element, attributes = {}, children = []) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
