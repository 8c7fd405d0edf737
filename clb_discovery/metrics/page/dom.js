"use strict";
// Small helpers for the document. Values of status.json become text nodes and fixed attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
function set(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// Have a node behind another one, or not at all.
function place(node, before, isThere) {
  if (!isThere) node.remove();
  else if (node.previousSibling !== before) before.after(node);
}

const viewsOf = new WeakMap();

// Make the children of a node those of the items, in their order. Existing children stay, and keep the focus.
function sync(parent, items, keyOf, make) {
  const old = viewsOf.get(parent) ?? new Map();
  const views = new Map();
  for (const item of items) views.set(keyOf(item), old.get(keyOf(item)) ?? make(item));
  for (const [key, view] of old) if (!views.has(key)) view.node.remove();
  viewsOf.set(parent, views);
  let next = parent.firstChild;
  for (const item of items) {
    const view = views.get(keyOf(item));
    if (view.node === next) next = next.nextSibling;
    else parent.insertBefore(view.node, next);
    view.update(item);
  }
}
